"""Multi-SLERP: a spherical mean of any number of models in one tangent step.

Source: C. Goddard, community method; there is no paper.

    n_i = |v_i|, u_i = v_i / (n_i + eps)
    m   = sum_i w_i u_i, normalised
    r   = sum_i w_i (u_i - <u_i, m> m)
    q   = m cos|r| + r sin|r| / |r|
    v   = q * sum_i w_i n_i

The tangents are projections, not logarithms, so that r vanishes but for rounding; the
step is kept to follow the source. v_i: ``experts[i]`` as one vector, less ``base`` with
``origin`` base (added back at the end); w_i: ``weights[i]``, divided by their sum with
``normalize``. Numbers (tensors of one entry), vectors of norm zero and two opposite
vectors take sum_i w_i v_i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk.errors import UsageError
from mtk_methods_weights._sphere import mean_direction, stack
from mtk_methods_weights._weighting import divisor, per_expert

if TYPE_CHECKING:
    from torch import Tensor


def merge(
    *,
    experts: list[Tensor],
    weights: list[float] | None,
    normalize: bool,
    origin: str,
    eps: float,
    base: Tensor | None = None,
) -> Tensor:
    """One step on the sphere from the mean direction; any shape."""
    factors = per_expert(weights, len(experts))
    total = divisor(factors, normalize=normalize)
    share = torch.tensor([factor / total for factor in factors], dtype=torch.float64)
    if origin == "zero":
        return _mean(experts, share, eps).to(experts[0].dtype)
    if base is None:
        raise UsageError("multislerp: origin base needs the base model")
    delta = _mean([expert - base for expert in experts], share, eps)
    return base + delta.to(base.dtype)


def _mean(tensors: list[Tensor], share: Tensor, eps: float) -> Tensor:
    vectors, norms = stack(tensors)  # (k, n), (k,)
    shape = tensors[0].shape
    if vectors.shape[1] <= 1 or bool((norms <= eps).all()):
        return (share @ vectors).reshape(shape)
    units = vectors / (norms + eps)[:, None]
    mean = mean_direction("multislerp", units, share, eps)
    if mean is None:
        return (share @ vectors).reshape(shape)
    tangent = share @ units - (share @ (units @ mean)) * mean  # (n,)
    length = torch.linalg.vector_norm(tangent) + eps
    point = mean * torch.cos(length) + tangent * (torch.sin(length) / length)
    result: Tensor = (point * (share @ norms)).reshape(shape)
    return result
