"""The command ``mtk``. Everything it does can be done from Python with ``import mtk``."""

from __future__ import annotations

__version__ = "0.1.0"
