"""Where models run: on the device asked for, and back again afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn


def best_device() -> str:
    """``cuda`` if there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def lent(model: nn.Module, device: str | None = None) -> Iterator[torch.device]:
    """Move a model to a device (the best, if none is named) for the length of a block."""
    from mtk.training import device_named

    before = next(iter(model.parameters())).device
    there = device_named(device or best_device())
    model.to(there)
    try:
        yield there
    finally:
        model.to(before)
