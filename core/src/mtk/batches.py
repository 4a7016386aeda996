"""Inputs of a track: a tensor, or a dict of tensors, whose first dimension counts items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Batch = Tensor | Mapping[str, Tensor]


def size(batch: Batch) -> int:
    """How many items there are; tensors that disagree are refused."""
    if isinstance(batch, Tensor):
        return len(batch)
    counts = {name: len(tensor) for name, tensor in batch.items()}
    if len(set(counts.values())) != 1:
        raise CheckpointError(
            f"inputs are tensors of one first dimension, these have {counts or 'none'}"
        )
    return next(iter(counts.values()))


def take(batch: Batch, index: Tensor | slice) -> Batch:
    """The items at these places, in this order."""
    return _each(batch, lambda tensor: tensor[index])


def alone(item: Batch) -> Batch:
    """One item without its first dimension, as a batch of one."""
    return _each(item, lambda tensor: tensor[None])


def parts(batch: Batch, length: int) -> Iterator[Batch]:
    """Batches of at most this many items, in order."""
    for start in range(0, size(batch), length):
        yield take(batch, slice(start, start + length))


def join(batches: Iterable[Batch]) -> Batch:
    """Batches of the same form, end to end."""
    import torch

    found = list(batches)
    first = found[0]
    if isinstance(first, Tensor):
        return torch.cat([b for b in found if isinstance(b, Tensor)])
    tables = [b for b in found if not isinstance(b, Tensor)]
    return {name: torch.cat([table[name] for table in tables]) for name in first}


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    if isinstance(batch, Tensor):
        return change(batch)
    return {name: change(tensor) for name, tensor in batch.items()}
