"""EMR: elect one unified task vector; mask and rescale it for each task.

Paper: Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging",
NeurIPS 2024, arXiv:2405.17461.

    tau_i    = theta_i - theta_0
    g        = +1 where sum_i tau_i > 0, else -1
    tau_uni  = g * max_i of |tau_i| over the entries with tau_i * g > 0
    M_i      = [tau_i * g > 0]
    lambda_i = S(tau_i) / S(M_i tau_uni)
    theta^i  = theta_0 + lambda_i M_i tau_uni

theta_0: ``base``, theta_i: ``experts[i]``; S is the L1 norm of the model (``rescaler``
global) or the sum over tensors of the mean magnitude (tensor_mean). The shared part is
tau_uni; the code of a task is M_i, one bit per entry in the part ``mask``, and lambda_i
in ``rescaler``. Where nothing of tau_i agrees, lambda_i is 1, and 0 if tau_i is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk.results import PerTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def unify(experts: list[Tensor], base: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The unified task vector and the mask of each expert, any shape."""
    deltas = [expert - base for expert in experts]
    positive = torch.stack(deltas).sum(0) > 0
    masks = [torch.where(positive, delta > 0, delta < 0) for delta in deltas]
    unified = torch.zeros_like(base)
    for delta, mask in zip(deltas, masks, strict=True):
        larger = mask & (delta.abs() > unified.abs())
        unified = torch.where(larger, delta, unified)
    return unified, masks


def scan(
    *, experts: list[Tensor], base: Tensor, rescaler: str, **_: Any
) -> dict[str, Tensor]:
    """Magnitude of each task vector and of what the mask leaves of the unified one."""
    unified, masks = unify(experts, base)
    entries = 1 if rescaler == "global" else max(1, base.numel())

    def magnitude(tensor: Tensor) -> Tensor:
        return tensor.abs().sum(dtype=torch.float64) / entries

    return {
        "own": torch.stack([magnitude(expert - base) for expert in experts]),  # (k,)
        "left": torch.stack([magnitude(unified * mask) for mask in masks]),  # (k,)
    }


def merge(
    *, experts: list[Tensor], base: Tensor, summary: Mapping[str, Any], **_: Any
) -> PerTask:
    """The unified task vector with one mask and one factor per expert."""
    unified, masks = unify(experts, base)
    own, left = summary["own"], summary["left"]
    fallback = (own > 0).double()  # nothing left to rescale
    factors = torch.where(left > 0, own / torch.where(left > 0, left, 1.0), fallback)
    codes = [
        {"mask": pack(mask), "rescaler": factor.to(base.dtype)}
        for mask, factor in zip(masks, factors, strict=True)
    ]
    return PerTask(unified, codes)


def decode(*, shared: Tensor, code: Mapping[str, Tensor], base: Tensor) -> Tensor:
    """The tensor of one task."""
    mask = unpack(code["mask"], shared.numel()).view(shared.shape)
    return base + code["rescaler"].to(shared.dtype) * torch.where(mask, shared, 0.0)


_BITS = (1, 2, 4, 8, 16, 32, 64, 128)


def pack(mask: Tensor) -> Tensor:
    """Booleans of any shape -> uint8, eight to a byte, the first in the lowest bit."""
    flat = mask.flatten()
    padded = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8)
    padded[: flat.numel()] = flat
    weighted = padded.view(-1, 8) * torch.tensor(_BITS, dtype=torch.uint8)
    return weighted.sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """The first ``count`` booleans of packed bytes, (count,)."""
    bits = packed[:, None] & torch.tensor(_BITS, dtype=torch.uint8)
    return (bits != 0).flatten()[:count]
