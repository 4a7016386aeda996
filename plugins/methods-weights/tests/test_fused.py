"""Election by signs, against election by choices, number for number."""

from __future__ import annotations

import itertools

import pytest
import torch

from mtk_methods_weights._election import disjoint
from mtk_methods_weights._fused import elect


@pytest.mark.parametrize(
    "weights", [[1.0, 1.0, 1.0], [0.3, 2.0, 1e-3], [1.0, -1.0, 0.5]]
)
@pytest.mark.parametrize("merge_func", ["mean", "sum", "max"])
@pytest.mark.parametrize("sign_tie", ["majority", "positive", "negative"])
def test_same_numbers(weights, merge_func, sign_tie, draw):
    corners = torch.tensor(
        list(itertools.product([0.0, -0.0, 1.0, -1.0, 1e-40], repeat=3))
    )
    deltas = [torch.cat([(2 * draw(500)).round(), draw(500), c]) for c in corners.T]
    for majority in (-1.0, 0.0, 1.0):
        rule = {"merge_func": merge_func, "sign_tie": sign_tie, "majority": majority}
        got, want = elect(deltas, weights, **rule), disjoint(deltas, weights, **rule)
        assert torch.equal(got, want)  # a zero may have another sign
