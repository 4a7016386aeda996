"""Metrics for mtk that need nothing but the core."""
