"""A mend for torchvision wheels whose operators cannot be loaded.

A torchvision built for CUDA cannot register its operators beside a CPU-only torch.
Then ``import torchvision`` fails, and with it open_clip, timm, transformers and diffusers,
often with a message about something else. Nothing in mtk uses these operators, so it is
enough that they are *defined*. Delete this module when every supported platform has
torchvision wheels that match its torch (a subprocess test shows when it does nothing).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept_alive: list[Any] = []


def ensure_importable() -> bool:
    """Define torchvision's operators where its extension does not load.

    Returns:
        True if the operators were defined here, False if there was nothing to do.
    """
    if _kept_alive or "torchvision" in sys.modules:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    import torch

    extension = next(Path(spec.origin).parent.glob("_C*.so"), None)
    if extension is not None:
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            pass
        else:
            return False
    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(name + _SCHEMA)
    _kept_alive.append(library)
    return True
