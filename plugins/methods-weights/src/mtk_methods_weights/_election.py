"""Sign election: one sign per position, and a merge of the entries that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk_methods_weights._weighting import SMALLEST_SUM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def sign_sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> dict[str, float]:
    """Scan: positive less negative positions of the sum; its sign is the majority."""
    signs = _sum(deltas, weights).sign_().reshape(-1)
    # Sums of so few signs are exact in float32.
    return {"signs": sum(float(piece.sum()) for piece in signs.split(1 << 22))}


def disjoint(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    merge_func: str,
    sign_tie: str,
    majority: float,
) -> Tensor:
    """Merge, at each position, the weighted entries that have the elected sign.

    The elected sign is that of the sum. A sum of exactly zero takes ``sign_tie``, or
    the sign of ``majority``, which counts as negative where it is zero as well.
    """
    total = _sum(deltas, weights)
    tie_positive = sign_tie == "positive" or (sign_tie == "majority" and majority > 0)
    positive = total >= 0 if tie_positive else total > 0
    result, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for delta, weight in zip(deltas, weights, strict=True):
        entry = delta * weight
        agrees = torch.where(positive, entry > 0, entry < 0)
        entry = torch.where(agrees, entry, 0.0)
        if merge_func == "max":
            result = torch.where(entry.abs() > result.abs(), entry, result)
        else:
            result += entry
            divisor.add_(agrees, alpha=weight)
    if merge_func != "mean":
        return result
    return result / torch.where(divisor.abs() < SMALLEST_SUM, 1.0, divisor)


def _sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight)
    return total
