"""mtk: merging neural networks, and judging merging methods fairly.

Importing this package does not import torch. Declarations are here at once; ``merge``,
``bench`` and the rest are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mtk.declare import (
    Adapter,
    Method,
    Metric,
    Needs,
    Param,
    RecipeFormat,
    Scan,
    Task,
    TensorInfo,
    Track,
    TrackFormat,
)
from mtk.hookspecs import hookimpl

if TYPE_CHECKING:
    from mtk.inspection import inspect
    from mtk.live import LiveTask
    from mtk.loading import load
    from mtk.merging import merge
    from mtk.protocol import bench
    from mtk.results import Merged, PerTask, Routed, load_merged

__version__ = "0.1.0"
_LAZY = {
    "LiveTask": "mtk.live",
    "Merged": "mtk.results",
    "PerTask": "mtk.results",
    "Routed": "mtk.results",
    "bench": "mtk.protocol",
    "inspect": "mtk.inspection",
    "load": "mtk.loading",
    "load_merged": "mtk.results",
    "merge": "mtk.merging",
}

__all__ = [
    "Adapter",
    "LiveTask",
    "Merged",
    "Method",
    "Metric",
    "Needs",
    "Param",
    "PerTask",
    "RecipeFormat",
    "Routed",
    "Scan",
    "Task",
    "TensorInfo",
    "Track",
    "TrackFormat",
    "__version__",
    "bench",
    "hookimpl",
    "inspect",
    "load",
    "load_merged",
    "merge",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mtk' has no attribute {name!r}")
