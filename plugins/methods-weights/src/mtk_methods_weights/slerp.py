"""Spherical linear interpolation of two models; covers NuSLERP.

Source: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; on
checkpoints it is community practice, without a merging paper.

    omega = arccos(<v_0, v_1> / (|v_0| |v_1|))
    v     = sin((1 - t) omega) / sin(omega) * v_0 + sin(t omega) / sin(omega) * v_1

v_j: the vectors of ``experts[j]``, or of ``experts[j] - base`` with ``origin`` base,
one per tensor, row (last axis) or column (first axis); t: ``t``. The vectors themselves
are combined, not their unit vectors. The linear form (1 - t) v_0 + t v_1 stands
in where the directions are too close or too opposite to span an arc, or a vector is
zero. Computed in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

# The cosine is right to some units of 1e-16, so that a smaller 1 - cos^2 says nothing.
# At small angles both formulas agree to 1e-14; near pi only the linear one is safe.
SMALLEST_SINE_SQUARED = 1e-14


def merge(
    *,
    experts: list[Tensor],
    t: float,
    origin: str,
    scope: str,
    dot_threshold: float,
    eps: float,
    base: Tensor | None = None,
) -> Tensor:
    """Interpolate ``experts[0]`` (t = 0) and ``experts[1]`` (t = 1); any shape."""
    first, second = experts
    rule: dict[str, Any] = {"scope": scope, "dot_threshold": dot_threshold, "eps": eps}
    if origin == "zero":
        return _interpolate(first, second, t, **rule)
    if base is None:
        raise UsageError("slerp: origin base needs the base model")
    return base + _interpolate(first - base, second - base, t, **rule)


def _interpolate(
    first: Tensor,
    second: Tensor,
    t: float,
    *,
    scope: str,
    dot_threshold: float,
    eps: float,
) -> Tensor:
    a = _vectors(first, scope).double()  # (vectors, length)
    b = _vectors(second, scope).double()
    n0, n1 = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=1)
    small = (n0 <= eps) | (n1 <= eps)
    cos = (a * b).sum(1) / torch.where(small, 1.0, n0 * n1)
    cos = cos.clamp(-1.0, 1.0)  # (vectors,)
    straight = small | (cos.abs() > dot_threshold)
    straight |= 1.0 - cos * cos <= SMALLEST_SINE_SQUARED
    omega = torch.where(straight, 1.0, torch.arccos(cos))
    w0 = torch.where(straight, 1.0 - t, torch.sin((1.0 - t) * omega) / torch.sin(omega))
    w1 = torch.where(straight, t, torch.sin(t * omega) / torch.sin(omega))
    mixed = w0[:, None] * a + w1[:, None] * b
    return _restore(mixed.to(first.dtype), first.shape, scope)


def _vectors(tensor: Tensor, scope: str) -> Tensor:
    """The tensor as (vectors, length)."""
    if scope == "tensor" or tensor.ndim < 2:
        return tensor.reshape(1, -1)
    if scope == "row":
        return tensor.flatten(0, -2)
    return tensor.flatten(1).T


def _restore(vectors: Tensor, shape: torch.Size, scope: str) -> Tensor:
    if scope == "column" and len(shape) > 1:
        return vectors.T.reshape(shape)
    return vectors.reshape(shape)
