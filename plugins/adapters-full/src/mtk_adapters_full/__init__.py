"""Full checkpoints for mtk: safetensors files, and folders of the usual libraries."""
