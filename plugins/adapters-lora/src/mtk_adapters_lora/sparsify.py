"""Pruning and sign election of TIES and DARE, on one tensor of every adapter.

Papers: TIES arXiv:2306.01708, DARE arXiv:2311.03099; conventions of PEFT's combination
types: ``density`` is the part that is kept, signs are elected over unweighted tensors,
and each sum over agreeing adapters is divided by their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Draw = Callable[[int, Tensor], Tensor]

BASE_TYPES = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")


def merge(
    kind: str,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: float,
    sign_method: str,
    draw: Draw,
) -> Tensor:
    """Merge equal-shaped tensors by one of ``BASE_TYPES``.

    ``draw`` gives the boolean keep mask of (index of the adapter, tensor) for the dare
    types.
    """
    if kind.startswith("dare"):
        parts = [_dropped(draw(i, t), t, density) for i, t in enumerate(tensors)]
    elif kind == "linear" or density >= 1:
        parts = list(tensors)
    else:
        parts = [largest(tensor, density) for tensor in tensors]
    stacked = torch.stack(parts)  # (k, ...)
    scale = torch.tensor(weights, dtype=stacked.dtype)
    weighted = stacked * scale.view(-1, *[1] * (stacked.dim() - 1))
    if not kind.endswith("ties"):
        return weighted.sum(0)
    agree = stacked.sign() == elect(stacked, sign_method)
    return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)


def largest(tensor: Tensor, density: float) -> Tensor:
    """The ``int(density * entries)`` entries of largest magnitude; zeros elsewhere."""
    flat = tensor.flatten()
    index = flat.abs().topk(int(density * flat.numel()), sorted=False).indices
    kept = torch.zeros_like(flat)
    kept[index] = flat[index]
    return kept.view_as(tensor)


def _dropped(mask: Tensor, tensor: Tensor, density: float) -> Tensor:
    return tensor if density >= 1 else tensor * mask / density


def elect(stacked: Tensor, sign_method: str) -> Tensor:
    """+1 or -1 per entry, by the sum of values (``total``) or of signs (``frequency``)."""
    votes = stacked if sign_method == "total" else stacked.sign()
    return torch.where(votes.sum(0) >= 0, 1.0, -1.0).to(stacked.dtype)
