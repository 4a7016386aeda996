"""Karcher mean: the point of the sphere with the least weighted squared distance.

Source: community method after Karcher's centre of mass; there is no merging paper.

    u    = sum_i w_i u_i, normalised,                       u_i = v_i / |v_i|
    T    = sum_i w_i theta_i / sin(theta_i) (u_i - cos(theta_i) u),
                                                            theta_i = arccos <u, u_i>
    u    = cos|T| u + sin|T| T / |T|, until |T| < tolerance
    v    = u * sum_i w_i |v_i|

v_i: ``experts[i]`` as one vector; w_i: ``weights[i]`` divided by their sum. Vectors of
norm up to ``tolerance`` have no direction: they count in the last line only. Numbers
(tensors of one entry), all-zero and two opposite vectors take sum_i w_i v_i.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from mtk.errors import ParameterError
from mtk_methods_weights._sphere import mean_direction, stack
from mtk_methods_weights._weighting import SMALLEST_SUM, per_expert

if TYPE_CHECKING:
    from torch import Tensor


def merge(
    *,
    experts: list[Tensor],
    weights: list[float] | None,
    iterations: int,
    tolerance: float,
) -> Tensor:
    """Fixed-point iteration from the normalised mean; any shape."""
    factors = per_expert(weights, len(experts))
    if abs(sum(factors)) < SMALLEST_SUM:
        raise ParameterError(f"karcher: the weights {factors} sum to zero")
    share = torch.tensor(factors, dtype=torch.float64) / sum(factors)
    vectors, norms = stack(experts)  # (k, n), (k,)
    like = experts[0]
    valid = (norms > tolerance) & (share != 0)
    u = None
    if vectors.shape[1] > 1 and bool(valid.any()):
        units, parts = vectors[valid] / norms[valid, None], share[valid]
        # Zero vectors have no say in the direction: the others share their weight.
        total = float(parts.sum())
        parts = parts / (total if abs(total) >= SMALLEST_SUM else 1.0)
        u = mean_direction("karcher", units, parts, tolerance)
    if u is None:
        return (share @ vectors).reshape(like.shape).to(like.dtype)
    u = _iterate(u, units, parts, iterations, tolerance)
    return (u * (share @ norms)).reshape(like.shape).to(like.dtype)


def _iterate(
    u: Tensor, units: Tensor, parts: Tensor, iterations: int, tolerance: float
) -> Tensor:
    for _ in range(iterations):
        cos = (units @ u).clamp(-1.0, 1.0)  # (k,)
        theta = torch.arccos(cos)
        # At zero angle there is nothing to add; at pi every direction is as short.
        usable = (theta >= tolerance) & (theta <= math.pi - tolerance)
        factor = torch.where(usable, parts * theta / torch.sin(theta), 0.0)
        tangent = factor @ units - (factor @ cos) * u
        length = torch.linalg.vector_norm(tangent)
        if length < tolerance:
            break
        u = torch.cos(length) * u + torch.sin(length) * tangent / length
        u = u / torch.linalg.vector_norm(u)
    return u
