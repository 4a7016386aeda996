"""RegMean: the weight that best reproduces every expert's outputs on its own inputs.

Paper: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models",
ICLR 2023, arXiv:2212.09849.

    G_i' = c_i (a G_i + (1 - a) diag(G_i)),            c_i = k w_i / sum_j w_j
    W^T  = (sum_i G_i')^-1 sum_i G_i' W_i^T

W_i: ``experts[i]`` (d_out, d_in), G_i: ``gram[i]`` (d_in, d_in), a:
``off_diagonal_scale``, w_i: ``weights[i]``. Solved in float64 for the difference to the
mean, W = mean + (...), which is the same solution where it is unique. Where the sum of
the Grams is singular, 1e-6 of its mean diagonal is added to the diagonal, so that
inputs which never occurred keep the mean. Tensors without the Gram of every expert are
averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk_methods_statistics._averaging import per_expert, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

RIDGE = 1e-6  # times the mean diagonal: far below any input that matters
# Squared ratio of the pivots of a Cholesky factor, an estimate of 1 / condition. Grams
# arrive in float32, whose rounding hides anything smaller than this.
SMALLEST_PIVOT_RATIO = 1e-10


def merge(
    *,
    experts: list[Tensor],
    gram: Sequence[Tensor | None],
    off_diagonal_scale: float,
    weights: list[float] | None,
) -> Tensor:
    """Solve one linear layer (d_out, d_in); average any other tensor."""
    factors = per_expert("regmean", weights, len(experts))
    mean = weighted_mean(experts, factors)
    known = [matrix for matrix in gram if matrix is not None]
    if len(known) < len(experts) or mean.ndim == 0 or not mean.numel():
        return mean
    flat = mean.reshape(-1, mean.shape[-1]).double()  # (d_out, d_in)
    total = torch.zeros_like(known[0], dtype=torch.float64)
    right = torch.zeros_like(flat.T)  # (d_in, d_out)
    for expert, matrix, factor in zip(experts, known, factors, strict=True):
        # The k / sum(w) of the formula is common to both sides and cancels.
        scaled = factor * shrink(matrix.double(), off_diagonal_scale)
        total += scaled
        right += scaled @ (expert.reshape(flat.shape).double() - flat).T
    step = solve(total, right).T  # (d_out, d_in)
    return (flat + step).reshape(mean.shape).to(mean.dtype)


def shrink(matrix: Tensor, off_diagonal_scale: float) -> Tensor:
    """Multiply the off-diagonal entries of a Gram matrix (d_in, d_in)."""
    diagonal = torch.diag(matrix.diagonal())
    return off_diagonal_scale * matrix + (1.0 - off_diagonal_scale) * diagonal


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve ``matrix @ x = right``; the matrix (d_in, d_in) is semi-definite."""
    average = matrix.diagonal().mean()
    if average <= 0:  # no inputs at all
        return torch.zeros_like(right)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal()
    if failed or (pivots.min() / pivots.max()) ** 2 < SMALLEST_PIVOT_RATIO:
        ridge = RIDGE * average * torch.eye(len(matrix), dtype=matrix.dtype)
        factor, failed = torch.linalg.cholesky_ex(matrix + ridge)
        if failed:  # not a Gram matrix to working precision; still the best fit
            best: Tensor = torch.linalg.lstsq(
                matrix + ridge, right, driver="gelsd"
            ).solution
            return best
    return torch.cholesky_solve(right, factor)
