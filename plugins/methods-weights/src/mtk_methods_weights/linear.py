"""Weighted average of the experts and, if wished, the base.

Papers: "Model soups" (arXiv:2203.05482); Wortsman et al., "Robust fine-tuning of
zero-shot models" (WiSE-FT), CVPR 2022, arXiv:2109.01903.

    theta = (w_0 theta_0 + sum_i w_i theta_i) / (w_0 + sum_i w_i)

theta_0: ``base``, theta_i: ``experts[i]``, w_0: ``base_weight``, w_i: ``weights[i]``;
without ``normalize`` the division is left out. WiSE-FT is one expert of weight alpha
and ``base_weight`` 1 - alpha.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.errors import ParameterError, UsageError
from mtk_methods_weights._weighting import SMALLEST_SUM, per_expert, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


def merge(
    *,
    experts: list[Tensor],
    weights: list[float] | None,
    normalize: bool,
    base_weight: float,
    base: Tensor | None = None,
) -> Tensor:
    """The weighted sum, divided by the sum of all weights; any shape."""
    factors, models = per_expert(weights, len(experts)), list(experts)
    if base_weight:
        if base is None:
            raise UsageError(
                f"linear: base_weight {base_weight:g} needs the base model"
            )
        factors, models = [base_weight, *factors], [base, *models]
    total = weighted_sum(models, factors, experts[0])
    if not normalize:
        return total
    divisor = sum(factors)
    if abs(divisor) < SMALLEST_SUM:
        raise ParameterError(
            f"linear: the weights {factors} sum to {divisor:g}: no mean exists\n"
            "Give normalize=false, or weights with another sum"
        )
    return total.div_(divisor)
