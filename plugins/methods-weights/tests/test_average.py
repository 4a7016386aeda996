"""average, against the plain mean."""

from __future__ import annotations

import torch

from mtk_methods_weights.average import merge as average


def test_is_the_mean(draw):
    experts = [draw(4, 3) for _ in range(5)]
    want = torch.stack([expert.double() for expert in experts]).mean(0)
    torch.testing.assert_close(average(experts=experts), want.float())


def test_shift_and_factor_commute(draw):
    experts, shift = [draw(7) for _ in range(3)], draw(7)
    moved = average(experts=[3 * expert + shift for expert in experts])
    torch.testing.assert_close(moved, 3 * average(experts=experts) + shift)


def test_slices_are_slices_of_the_whole(draw):
    experts = [draw(10) for _ in range(3)]
    part = average(experts=[expert[3:8] for expert in experts])
    assert torch.equal(part, average(experts=experts)[3:8])


def test_equals_task_arithmetic_with_one_over_k(merge, models):
    base, experts = models(4)
    other = merge("task_arithmetic", experts, base, scale=0.25).tensors
    torch.testing.assert_close(merge("average", experts, base).tensors, other)
