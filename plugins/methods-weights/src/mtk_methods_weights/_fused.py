"""Sign election on float32, by multiplying with signs; values as in ``_election``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk_methods_weights._election import disjoint
from mtk_methods_weights._weighting import SMALLEST_SUM, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_SIGN = -0x80000000  # the sign bit of a float32
_MINUS_ONE = 0x3F800000 + _SIGN  # the bits of -1.0


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
    then zero only where the numerator is. Multiplied with the elected sign, the entries
    that agree are the positive ones.
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
    tie_positive = sign_tie == "positive" or (sign_tie == "majority" and majority > 0)
    sign = _signs(weighted_sum(deltas, weights, deltas[0]), positive=tie_positive)
    result: Tensor | None = None
    divisor: Tensor | None = None
    for delta, weight in zip(deltas, weights, strict=True):
        entry = (delta if weight == 1.0 else delta * weight) * sign
        entry.relu_()
        result = entry.clone() if result is None else result.add_(entry)
        if merge_func == "mean":
            agrees = entry.sign_()
            divisor = (
                agrees.mul_(weight)
                if divisor is None
                else divisor.add_(agrees, alpha=weight)
            )
    assert result is not None
    if divisor is not None:
        result.div_(divisor.clamp_min_(SMALLEST_SUM))
    return result.mul_(sign)


def _signs(total: Tensor, *, positive: bool) -> Tensor:
    """+1 and -1, in the memory of ``total``; ``positive`` says what zero becomes."""
    bits = total.add_(0.0).view(torch.int32)  # + 0.0 makes one zero of both
    if positive:
        bits.bitwise_right_shift_(31).bitwise_not_()  # all ones where not negative
    else:
        bits.neg_().bitwise_right_shift_(31)  # all ones where above zero
    bits.bitwise_and_(_SIGN).bitwise_xor_(_MINUS_ONE)
    return total
