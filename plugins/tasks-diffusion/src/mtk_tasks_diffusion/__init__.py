"""Image generation tracks for mtk: the embedded ``digits-diffusion`` grid.

Importing this package is cheap; torch, diffusers, peft and scikit-learn are imported
by the functions that need them.
"""
