"""Plain checkpoints for mtk: safetensors files and folders, open_clip models."""
