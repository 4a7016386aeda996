"""Image classification tracks for mtk: the embedded ``digits-clip`` grid.

Importing this package is cheap; torch, open_clip and scikit-learn are imported
by the functions that need them.
"""
