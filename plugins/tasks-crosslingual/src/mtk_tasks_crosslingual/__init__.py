"""The track crosslingual-mt5 for mtk: five tasks in five languages."""
