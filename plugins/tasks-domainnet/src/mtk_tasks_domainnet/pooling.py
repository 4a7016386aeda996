"""Cells that are trained on together, pooled as they are: larger ones are seen more often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk import training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtk.training import Regime


def chosen(sizes: Sequence[int], step: int, regime: Regime) -> list[tuple[int, int]]:
    """The items of one training step, as pairs of a cell and a place in it.

    Args:
        sizes: how many items each cell has; they are laid end to end.
        step: its number.
        regime: of the training.
    """
    ends = torch.tensor(sizes).cumsum(0)
    items = training.items(int(ends[-1]), step, regime)
    cells = torch.searchsorted(ends, items, right=True).tolist()
    starts = [0, *ends.tolist()]
    return [
        (cell, item - starts[cell])
        for cell, item in zip(cells, items.tolist(), strict=True)
    ]
