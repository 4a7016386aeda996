"""Task arithmetic: add scaled task vectors to the base.

Paper: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023,
arXiv:2212.04089.

    tau_i = theta_i - theta_0
    theta = theta_0 + lambda * sum_i w_i tau_i          (/ sum_i w_i with ``normalize``)

theta_0: ``base``, theta_i: ``experts[i]``, lambda: ``scale``, w_i: ``weights[i]``. A
negative weight makes the model forget a task. lambda multiplies the sum, not the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk_methods_weights._weighting import divisor, per_expert, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


def merge(
    *,
    experts: list[Tensor],
    base: Tensor,
    scale: float,
    weights: list[float] | None,
    normalize: bool,
) -> Tensor:
    """The base plus the scaled sum of task vectors; any shape."""
    factors = per_expert(weights, len(experts))
    total = weighted_sum((expert - base for expert in experts), factors, base)
    factor = scale / divisor(factors, normalize=normalize)
    return total.mul_(factor).add_(base)
