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
    from collections.abc import Mapping

    from torch import Tensor

# The cosine is right to some units of 1e-16, so that a smaller 1 - cos^2 says nothing.
# At small angles both formulas agree to 1e-14; near pi only the linear one is safe.
SMALLEST_SINE_SQUARED = 1e-14


def scan_tensor(
    *, experts: list[Tensor], origin: str, base: Tensor | None = None, **_: Any
) -> dict[str, Tensor]:
    """Squared norms and the product of the two vectors, (3,); any slice of them."""
    a, b = (v.reshape(-1).double() for v in _vectors_from(experts, base, origin))
    return {"products": torch.stack([a @ a, b @ b, a @ b])}


def finish_tensor(
    *, summary: Mapping[str, Any], t: float, dot_threshold: float, eps: float, **_: Any
) -> dict[str, list[float]]:
    """What the two vectors are multiplied with."""
    squares, dot = summary["products"][:2], summary["products"][2:]
    n0, n1 = squares.sqrt().split(1)
    factors = _factors(n0, n1, dot, t, dot_threshold=dot_threshold, eps=eps)
    return {"factors": [float(factor) for factor in factors]}


def scan_vectors(
    *,
    experts: list[Tensor],
    t: float,
    origin: str,
    scope: str,
    dot_threshold: float,
    eps: float,
    base: Tensor | None = None,
    **_: Any,
) -> dict[str, Tensor]:
    """What each row or column of a whole tensor is multiplied with, (2, vectors)."""
    first, second = _vectors_from(experts, base, origin)
    if first.ndim < 2:
        scope = "row"
        first, second = first.reshape(1, -1), second.reshape(1, -1)
    a, b = _vectors(first, scope).double(), _vectors(second, scope).double()
    n0, n1 = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=1)
    dot = (a * b).sum(1)
    factors = _factors(n0, n1, dot, t, dot_threshold=dot_threshold, eps=eps)
    return {"vectors": torch.stack(factors)}


def merge(
    *,
    experts: list[Tensor],
    t: float,
    origin: str,
    scope: str,
    dot_threshold: float,
    eps: float,
    summary: Mapping[str, Any],
    base: Tensor | None = None,
) -> Tensor:
    """Interpolate ``experts[0]`` (t = 0) and ``experts[1]`` (t = 1).

    A slice, where ``summary`` holds the factors of the whole, or else a whole tensor.
    """
    first, second = _vectors_from(experts, base, origin)
    rule: dict[str, Any] = {"t": t, "dot_threshold": dot_threshold, "eps": eps}
    given: dict[str, Any] = {"experts": experts, "origin": origin, "base": base}
    if scope == "tensor":
        if "factors" not in summary:
            summary = finish_tensor(summary=scan_tensor(**given), **rule)
        w0, w1 = summary["factors"]
        mixed = torch.mul(first.double(), w0).add_(second.double(), alpha=w1)
    else:
        if "vectors" not in summary:
            summary = scan_vectors(scope=scope, **given, **rule)
        if first.ndim < 2:
            scope, first, second = "row", first.reshape(1, -1), second.reshape(1, -1)
        w0, w1 = summary["vectors"][:, :, None]  # (vectors, 1)
        a, b = _vectors(first, scope).double(), _vectors(second, scope).double()
        mixed = _restore(w0 * a + w1 * b, first.shape, scope)
        mixed = mixed.view(experts[0].shape)
    result = mixed.to(first.dtype)
    return result if origin == "zero" or base is None else result.add_(base)


def _vectors_from(
    experts: list[Tensor], base: Tensor | None, origin: str
) -> tuple[Tensor, Tensor]:
    first, second = experts
    if origin == "zero":
        return first, second
    if base is None:
        raise UsageError("slerp: origin base needs the base model")
    return first - base, second - base


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
