"""Metrics for mtk: classification, generated text, generated images."""
