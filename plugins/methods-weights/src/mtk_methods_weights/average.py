"""Uniform average of the experts (uniform model soup).

Paper: Wortsman et al., "Model soups", ICML 2022, arXiv:2203.05482.

    theta = (theta_1 + ... + theta_k) / k

theta_i: ``experts[i]``. Sums are kept in the dtype given (at least float32) and divided
once, so that one expert comes out bit by bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk_methods_weights._weighting import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


def merge(*, experts: list[Tensor]) -> Tensor:
    """The element-wise mean; any shape."""
    total = weighted_sum(experts, [1.0] * len(experts), experts[0])
    return total.div_(len(experts))
