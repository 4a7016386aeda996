"""One number per expert: defaults, weighted sums and safe divisors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

# A sum of weights below this is treated as zero: dividing by it would blow rounding
# errors of float32 weights up to the size of the weights themselves.
SMALLEST_SUM = 1e-8


def per_expert(weights: Sequence[float] | None, count: int) -> list[float]:
    """The given weights, or one for every expert."""
    return [1.0] * count if weights is None else list(weights)


def each(value: float | list[float], count: int) -> list[float]:
    """One number for every expert: its own, or the same."""
    return list(value) if isinstance(value, list) else [float(value)] * count


def divisor(weights: Sequence[float], *, normalize: bool) -> float:
    """The sum of the weights where it is asked for and usable, else one."""
    total = sum(weights)
    return total if normalize and abs(total) >= SMALLEST_SUM else 1.0


def weighted_sum(
    tensors: Iterable[Tensor], weights: Sequence[float], like: Tensor
) -> Tensor:
    """Sum of w_i * tensor_i, in memory of its own. Weight zero adds nothing."""
    total: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        if not weight:
            continue
        if total is None:
            total = torch.mul(tensor, weight)
        else:
            total.add_(tensor, alpha=weight)
    return torch.zeros_like(like) if total is None else total
