"""Language tracks for mtk: the embedded grid ``cldr-t5``.

Importing this package is cheap; torch, transformers, Babel and sacrebleu are imported
by the functions that need them.
"""
