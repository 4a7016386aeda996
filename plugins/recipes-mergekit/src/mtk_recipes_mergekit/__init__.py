"""mergekit's YAML recipes for mtk."""
