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
from mtk_methods_weights._trimming import PIECE, steps

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
    if scope == "tensor" or first.ndim < 2:
        a, b = first.reshape(-1), second.reshape(-1)
        sums = torch.zeros(3, dtype=torch.float64)
        for start, end in steps(len(a), PIECE):
            x, y = a[start:end].double(), b[start:end].double()
            sums += torch.stack([x @ x, y @ y, x @ y])
        (n0, n1), dot = sums[:2].sqrt().split(1), sums[2:]
        w0, w1 = _factors(n0, n1, dot, t, dot_threshold=dot_threshold, eps=eps)
        mixed = torch.empty_like(a)
        for start, end in steps(len(a), PIECE):
            x, y = a[start:end].double(), b[start:end].double()
            mixed[start:end] = w0 * x + w1 * y
        return mixed.view(first.shape)
    a = _vectors(first, scope).double()  # (vectors, length)
    b = _vectors(second, scope).double()
    n0, n1 = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=1)
    dot = (a * b).sum(1)
    w0, w1 = _factors(n0, n1, dot, t, dot_threshold=dot_threshold, eps=eps)
    mixed = w0[:, None] * a + w1[:, None] * b
    return _restore(mixed.to(first.dtype), first.shape, scope)


def _factors(
    n0: Tensor, n1: Tensor, dot: Tensor, t: float, *, dot_threshold: float, eps: float
) -> tuple[Tensor, Tensor]:
    """What the vectors are multiplied with; all (vectors,)."""
    small = (n0 <= eps) | (n1 <= eps)
    cos = (dot / torch.where(small, 1.0, n0 * n1)).clamp(-1.0, 1.0)
    straight = small | (cos.abs() > dot_threshold)
    straight |= 1.0 - cos * cos <= SMALLEST_SINE_SQUARED
    omega = torch.where(straight, 1.0, torch.arccos(cos))
    w0 = torch.where(straight, 1.0 - t, torch.sin((1.0 - t) * omega) / torch.sin(omega))
    w1 = torch.where(straight, t, torch.sin(t * omega) / torch.sin(omega))
    return w0, w1


def _vectors(tensor: Tensor, scope: str) -> Tensor:
    """The rows or columns of a tensor, (vectors, length)."""
    if scope == "row":
        return tensor.flatten(0, -2)
    return tensor.flatten(1).T


def _restore(vectors: Tensor, shape: torch.Size, scope: str) -> Tensor:
    if scope == "column":
        return vectors.T.reshape(shape)
    return vectors.reshape(shape)
