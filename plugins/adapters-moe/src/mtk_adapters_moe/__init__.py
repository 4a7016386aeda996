"""Mixtures of experts for mtk: a view of single experts, and upcycling of dense models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtk_adapters_moe.structures import MoeLayer, Structure, structure
    from mtk_adapters_moe.upcycling import Upcycled, upcycle

_LAZY = {
    "MoeLayer": "mtk_adapters_moe.structures",
    "Structure": "mtk_adapters_moe.structures",
    "Upcycled": "mtk_adapters_moe.upcycling",
    "structure": "mtk_adapters_moe.structures",
    "upcycle": "mtk_adapters_moe.upcycling",
}

__all__ = ["MoeLayer", "Structure", "Upcycled", "structure", "upcycle"]


def __getattr__(name: str) -> Any:
    # Importing this package, as listing plugins does, imports no torch.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mtk_adapters_moe' has no attribute {name!r}")
