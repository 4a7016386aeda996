"""task_arithmetic, against the sum of task vectors written out."""

from __future__ import annotations

import torch

from mtk_methods_weights.task_arithmetic import merge as task_arithmetic


def run(experts, base, **changes):
    params = {"scale": 0.3, "weights": None, "normalize": False} | changes
    return task_arithmetic(experts=experts, base=base, **params)


def test_weighted_sum(draw):
    base, experts = draw(4, 2), [draw(4, 2) for _ in range(3)]
    weights = [0.5, -1.0, 2.0]
    total = sum(
        w * (e.double() - base.double()) for w, e in zip(weights, experts, strict=True)
    )
    got = run(experts, base, scale=0.7, weights=weights)
    torch.testing.assert_close(got, (base + 0.7 * total).float())
    got = run(experts, base, scale=0.7, weights=weights, normalize=True)
    torch.testing.assert_close(got, (base + 0.7 * total / 1.5).float())


def test_zero_scale_is_the_base_bit_by_bit(draw):
    base = draw(5)
    assert torch.equal(run([draw(5), draw(5)], base, scale=0.0), base)


def test_one_expert_at_full_scale(draw):
    base, expert = draw(5), draw(5)
    torch.testing.assert_close(run([expert], base, scale=1.0), expert)


def test_adding_and_forgetting_cancel(draw):
    base, expert = draw(5), draw(5)
    torch.testing.assert_close(run([expert, expert], base, weights=[1.0, -1.0]), base)


def test_zero_sum_of_weights_counts_as_one(draw):
    base, experts = draw(5), [draw(5), draw(5)]
    one = run(experts, base, weights=[1.0, -1.0], normalize=True)
    assert torch.equal(one, run(experts, base, weights=[1.0, -1.0]))


def test_an_expert_equal_to_the_base_adds_nothing(draw):
    base, expert = draw(5), draw(5)
    assert torch.equal(run([expert, base.clone()], base), run([expert], base))
