"""The weighted mean that stands in where a statistic says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# A sum of weights below this cannot be divided by.
SMALLEST_SUM = 1e-8


def per_expert(method: str, weights: Sequence[float] | None, count: int) -> list[float]:
    """The given weights, or one for every expert; a zero sum is refused."""
    factors = [1.0] * count if weights is None else list(weights)
    if abs(sum(factors)) < SMALLEST_SUM:
        raise ParameterError(f"{method}: the weights {factors} sum to zero")
    return factors


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of w_i * tensor_i over the sum of w_i; any shape."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total / sum(weights)
