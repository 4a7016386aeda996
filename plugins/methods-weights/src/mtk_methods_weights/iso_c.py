"""Iso-C: isotropic merging in the common subspace.

Paper: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and
Task-Specific Subspaces", ICML 2025, arXiv:2502.04959.

    D     = sum_i (W_i - W_0) = U diag(s) V^T        (m, n), r = min(m, n) components
    theta = W_0 + alpha * mean(s) * U V^T

W_0: ``base``, W_i: ``experts[i]``, alpha: ``scale``. This is the rule of 2-D tensors
that match ``include`` and not ``exclude``; all others get
W_0 + alpha * mean_i(W_i - W_0), or stay at W_0 with ``rest`` base.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mtk import TensorInfo

# Singular vectors of smaller singular values, relative to the largest, are rounding
# noise of float32: they differ between SVD routines, and would enter at full strength.
RELATIVE_RANK = 1e-6


def merge(
    *,
    experts: list[Tensor],
    base: Tensor,
    info: TensorInfo,
    scale: float,
    include: list[str],
    exclude: list[str],
    rest: str,
) -> Tensor:
    """Flatten the spectrum of 2-D tensors, (m, n); average the others, any shape."""
    if base.ndim == 2 and base.numel() and _selected(info.name, include, exclude):
        return base + scale * isotropic(_total(experts, base))
    if rest == "base":
        return base.clone()
    return base + _total(experts, base) * (scale / len(experts))


def isotropic(delta: Tensor) -> Tensor:
    """The matrix (m, n) with all its singular values replaced by their mean.

    The mean is over all min(m, n) values, as published; directions that are only
    rounding noise are left out.
    """
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)  # (m, r), (r,), (r, n)
    real = s > RELATIVE_RANK * s[0]
    flat: Tensor = s.mean() * ((u * real) @ vh)
    return flat


def _total(experts: list[Tensor], base: Tensor) -> Tensor:
    total = torch.zeros_like(base)
    for expert in experts:
        total += expert - base
    return total


def _selected(name: str, include: list[str], exclude: list[str]) -> bool:
    def matches(patterns: list[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return matches(include) and not matches(exclude)
