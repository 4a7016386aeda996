"""Reading what a method gets: pieces or whole tensors, in the dtype of computation."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from mtk._checks import finite
from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from mtk.adapters import Checkpoint

# Entries converted and looked at in one go; they stay in the second-level cache.
PIECE = 1 << 16


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def read_whole(source: Checkpoint, name: str, scratch: Scratch | None = None) -> Tensor:
    """A whole tensor, in the dtype of computation, in ``scratch`` where it is given."""
    info = source.info(name)
    dtype: torch.dtype = getattr(torch, info.dtype)
    size = torch.Size(info.shape).numel()
    if size <= PIECE or not hasattr(source, "part"):
        return fit(source, name, read_part(source, name, 0, size)).view(info.shape)
    tensor = (scratch or Scratch()).give(source, size, compute_dtype(dtype))
    for start in range(0, size, PIECE):
        end = min(start + PIECE, size)
        tensor[start:end] = fit(source, name, read_part(source, name, start, end))
    return tensor.view(info.shape)


class Scratch(threading.local):
    """Memory for the inputs of one call, used again by the next call of a thread.

    Fresh memory for every large tensor costs more than filling it.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, torch.dtype], Tensor] = {}

    def give(self, source: Checkpoint, size: int, dtype: torch.dtype) -> Tensor:
        """Room for ``size`` entries of one source."""
        kept = self._kept.get((id(source), dtype))
        if kept is None or len(kept) < size:
            kept = torch.empty(size, dtype=dtype)
            self._kept[id(source), dtype] = kept
        return kept[:size]


def read_part(source: Checkpoint, name: str, start: int, end: int) -> Tensor:
    if hasattr(source, "part"):
        part: Tensor = source.part(name, start, end)
        return part
    return source.read(name).flatten()[start:end]


def fit(source: Checkpoint, name: str, tensor: Tensor) -> Tensor:
    """The numbers in the dtype of computation, if they are numbers."""
    tensor = tensor.to(compute_dtype(tensor.dtype))
    if not finite(tensor):
        raise CheckpointError(
            f"{source.label}: {name!r} contains NaN or infinity\n"
            "Nothing was merged; look at how that model was trained or converted"
        )
    return tensor
