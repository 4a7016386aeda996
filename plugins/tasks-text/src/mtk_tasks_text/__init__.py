"""Language tracks for mtk: the embedded grid ``cldr-t5``.

Importing this package is cheap; torch, transformers and Babel are imported by the
functions that need them.
"""
