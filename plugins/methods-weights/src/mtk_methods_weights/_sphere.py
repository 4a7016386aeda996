"""Weighted directions on the unit sphere, for means of more than two models.

Everything here is float64: angles between fine-tunings of one base are small, and
1 - cos of a small angle loses half of its digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk.errors import MethodError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def stack(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The tensors as vectors (k, n), and their norms (k,)."""
    vectors = torch.stack([tensor.flatten().double() for tensor in tensors])
    return vectors, torch.linalg.vector_norm(vectors, dim=1)


def mean_direction(
    method: str, units: Tensor, weights: Tensor, smallest: float
) -> Tensor | None:
    """The normalised weighted mean of unit vectors (k, n), shape (n,).

    None asks for the linear mix, for two directions that cancel: every great circle
    through them is as good as any other. More than two are refused.
    """
    mean = weights @ units
    norm = torch.linalg.vector_norm(mean)
    if norm >= smallest:
        direction: Tensor = mean / norm
        return direction
    if len(units) == 2:
        return None
    raise MethodError(
        f"{method}: the directions of {len(units)} experts cancel and have no mean "
        f"(its length is {float(norm):.1e})\nUse linear, other weights or fewer experts"
    )
