"""Cells that are trained on together."""

from __future__ import annotations

from collections import Counter

from mtk.training import Regime
from mtk_tasks_domainnet import pooling

REGIME = Regime(rate=0.1, batch=5, steps=4, seed=3)
SIZES = [3, 1, 6]


def test_every_pass_takes_every_item_of_every_cell_once():
    drawn = [pair for step in range(4) for pair in pooling.chosen(SIZES, step, REGIME)]
    every = Counter((cell, n) for cell, size in enumerate(SIZES) for n in range(size))
    assert Counter(drawn[:10]) == Counter(drawn[10:]) == every
    assert drawn[:10] != drawn[10:]


def test_the_order_is_the_seeds():
    one, same, other = (
        pooling.chosen(SIZES, 0, Regime(rate=0.1, batch=5, steps=4, seed=seed))
        for seed in (3, 3, 4)
    )
    assert one == same == pooling.chosen(SIZES, 0, REGIME)
    assert one != other
