"""Best low-rank approximations, from factors or from a dense matrix.

Of all matrices of rank R, the first R singular triples are nearest in Frobenius norm;
the error is the norm of the remaining singular values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

# Halko, Martinsson and Tropp, arXiv:0909.4061: a few extra columns and two power
# iterations bring the randomised error within a few per cent of the best one.
OVERSAMPLE = 10
ITERATIONS = 2
# Below this ratio of smallest side to wanted columns the exact SVD costs little more.
_EXACT_BELOW = 4
# Entries that are compared at a time.
_PART = 2**18


class LowRank(NamedTuple):
    """``b @ a`` nearest to a matrix, its distance to it, and that matrix's norm."""

    a: Tensor  # (R, d_in)
    b: Tensor  # (d_out, R)
    error: float
    norm: float


def from_factors(a: Tensor, b: Tensor, rank: int) -> LowRank:
    """The nearest product of rank R to ``b @ a``, without forming it.

    QR of both factors leaves an SVD of a matrix of their own rank: O((m + n) R^2).

    Args:
        a: (R0, d_in).
        b: (d_out, R0).
        rank: R; at most min(R0, d_in, d_out) are kept.
    """
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _cut(q_b @ u, s, vh @ q_a.T, rank)


def from_dense(matrix: Tensor, rank: int) -> LowRank:
    """The nearest product of rank R to a dense matrix, by its full SVD."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return _cut(u, s, vh, rank)


def _cut(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> LowRank:
    kept = min(rank, s.numel())
    return LowRank(
        (vh[:kept]).float(),
        (u[:, :kept] * s[:kept]).float(),
        float(s[kept:].norm()),
        float(s.norm()),
    )


def randomised(matrix: Tensor, rank: int, generator: Generator) -> LowRank:
    """A nearly best product of rank R, balanced, from a seeded range finder.

    Small matrices are decomposed exactly. The error is measured, not estimated.
    """
    kept = min(rank, *matrix.shape)
    columns = min(kept + OVERSAMPLE, *matrix.shape)
    if min(matrix.shape) <= _EXACT_BELOW * columns:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        probe = torch.randn(matrix.shape[1], columns, generator=generator)
        basis = _orthonormal(matrix @ probe.to(matrix))
        for _ in range(ITERATIONS):
            basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
        small, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ small
    root = s[:kept].sqrt()
    a, b = root[:, None] * vh[:kept], u[:, :kept] * root
    return LowRank(a, b, _distance(matrix, b, a), float(torch.linalg.norm(matrix)))


def _distance(matrix: Tensor, b: Tensor, a: Tensor) -> float:
    """``|matrix - b @ a|``, some rows at a time."""
    rows = max(1, _PART // matrix.shape[1])
    parts = zip(matrix.split(rows), b.split(rows), strict=True)
    norms = [torch.linalg.norm(torch.addmm(m, part, a, alpha=-1)) for m, part in parts]
    return float(torch.linalg.norm(torch.stack(norms)))


def _orthonormal(matrix: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(matrix).Q
    return q


def product_norm(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of ``b @ a``, from the two small Gram matrices."""
    a, b = a.double(), b.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt())
