"""LoRA adapters for mtk: reading, combining, extracting, writing."""
