"""Sign election on float32, by masks instead of choices; values as in ``_election``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk_methods_weights._election import disjoint
from mtk_methods_weights._weighting import SMALLEST_SUM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but its sign


def elect(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    merge_func: str,
    sign_tie: str,
    majority: float,
) -> Tensor:
    """What :func:`disjoint` gives, several times faster in the usual case.

    Usual are float32, a mean or sum, and weights that are all positive: a divisor is
    then zero only where the numerator is.
    """
    usual = deltas[0].dtype == torch.float32 and merge_func in {"mean", "sum"}
    if not usual or min(weights) < SMALLEST_SUM:
        return disjoint(
            deltas,
            weights,
            merge_func=merge_func,
            sign_tie=sign_tie,
            majority=majority,
        )
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight)
    bits = (total + 0.0).view(torch.int32)  # + 0.0 makes one zero of both
    tie_positive = sign_tie == "positive" or (sign_tie == "majority" and majority > 0)
    positive = ~(bits >> 31) if tie_positive else -bits >> 31  # all ones, or zero
    result, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for delta, weight in zip(deltas, weights, strict=True):
        entry = (delta * weight).view(torch.int32)
        agrees = (entry >> 31) ^ positive
        result += (entry & agrees).view(torch.float32)
        if merge_func == "mean":
            agrees &= -(entry & _MAGNITUDE) >> 31  # zeros agree with nobody
            agrees &= int(torch.tensor(weight).view(torch.int32))
            divisor += agrees.view(torch.float32)
    if merge_func == "sum":
        return result
    return result / divisor.clamp_min_(SMALLEST_SUM)
