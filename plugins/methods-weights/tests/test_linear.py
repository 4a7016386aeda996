"""linear, against the weighted mean written out."""

from __future__ import annotations

import pytest
import torch

from mtk.errors import ParameterError, UsageError
from mtk_methods_weights.linear import merge as linear


def run(experts, **changes):
    params = {"weights": None, "normalize": True, "base_weight": 0.0} | changes
    return linear(experts=experts, **params)


def test_weighted_mean_with_base(draw):
    base, (a, b) = draw(3, 4), (draw(3, 4), draw(3, 4))
    got = run([a, b], weights=[0.5, 2.0], base_weight=-0.3, base=base)
    want = (-0.3 * base.double() + 0.5 * a.double() + 2.0 * b.double()) / 2.2
    torch.testing.assert_close(got, want.float())


def test_weights_that_are_not_normalised(draw):
    a, b = draw(5), draw(5)
    torch.testing.assert_close(
        run([a, b], weights=[2.0, -1.0], normalize=False), 2 * a - b
    )


def test_one_hot_is_that_model_bit_by_bit(draw):
    experts = [draw(6), draw(6), draw(6)]
    assert torch.equal(run(experts, weights=[0.0, 0.3, 0.0]), experts[1] * 0.3 / 0.3)
    assert torch.equal(run(experts, weights=[0.0, 1.0, 0.0]), experts[1])


def test_common_factor_of_the_weights_changes_nothing(draw):
    experts = [draw(6), draw(6)]
    one, two = run(experts, weights=[1.0, 3.0]), run(experts, weights=[10.0, 30.0])
    torch.testing.assert_close(one, two)


def test_equals_average_with_equal_weights(merge, models):
    base, experts = models()
    torch.testing.assert_close(
        merge("linear", experts, base).tensors, merge("average", experts, base).tensors
    )


def test_equals_task_arithmetic_with_the_rest_on_the_base(merge, models):
    base, experts = models()
    weights = {"weights": [0.4] * 3, "base_weight": 1 - 3 * 0.4, "normalize": False}
    torch.testing.assert_close(
        merge("linear", experts, base, **weights).tensors,
        merge("task_arithmetic", experts, base, scale=0.4).tensors,
    )


def test_zero_sum_is_refused_when_normalising(draw):
    with pytest.raises(ParameterError, match="sum to 0"):
        run([draw(2), draw(2)], weights=[1.0, -1.0])
    assert run([draw(2), draw(2)], weights=[1.0, -1.0], normalize=False).shape == (2,)


def test_base_weight_without_base_is_refused(draw):
    with pytest.raises(UsageError, match="base_weight"):
        run([draw(2)], base_weight=0.5)
