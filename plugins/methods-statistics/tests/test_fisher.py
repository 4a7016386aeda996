"""fisher, against the formula written out."""

from __future__ import annotations

import pytest
import torch


def reference(experts, fishers, weights, *, norm, floor, mode, favor):
    """One tensor alone, in float64."""
    total = divisor = 0.0
    for i, weight in enumerate(weights):
        f = fishers[i].double()
        c = weight if norm == "none" else weight / f.norm()
        if i == 0 or not favor:
            f = f + floor if mode == "add" else f.clamp_min(floor)
        total, divisor = total + c * f * experts[i].double(), divisor + c * f
    return (total / divisor).float()


@pytest.fixture
def case(draw):
    experts = [draw(4, 5) for _ in range(3)]
    fishers = [draw(4, 5).square() * 10.0**-i for i in range(3)]
    fishers[0][:2] = 0.0
    fishers[1][1:3] = 0.0
    return experts, fishers


def run(merge, experts, fishers, **params):
    states = [{"w": expert} for expert in experts]
    given = {"statistics": [{"w": values} for values in fishers]}
    return merge("fisher", states, more=given, **params).tensors["w"]


@pytest.mark.parametrize("norm", ["none", "model", "tensor"])
@pytest.mark.parametrize("mode", ["max", "add"])
@pytest.mark.parametrize("favor", [True, False])
def test_formula(merge, case, norm, mode, favor):
    params = {"fisher_norm": norm, "floor": 1e-3, "floor_mode": mode}
    weights = [1.0, 0.5, 2.0]
    got = run(merge, *case, weights=weights, favor_target=favor, **params)
    rule = {"norm": norm, "floor": 1e-3, "mode": mode, "favor": favor}
    torch.testing.assert_close(got, reference(*case, weights, **rule))


def test_model_norm_is_taken_over_all_tensors(merge, draw):
    experts = [{"a": draw(3), "b": draw(4)} for _ in range(2)]
    fishers = [{n: draw(*t.shape).square() for n, t in e.items()} for e in experts]
    got = merge("fisher", experts, more={"statistics": fishers}, floor=0.0)
    norms = [torch.cat([f["a"], f["b"]]).norm() for f in fishers]
    for name in ("a", "b"):
        g = [f[name] / n for f, n in zip(fishers, norms, strict=True)]
        want = sum(x * e[name] for x, e in zip(g, experts, strict=True)) / sum(g)
        torch.testing.assert_close(got.tensors[name], want)
    assert got.report.passes == 2


def test_other_norms_need_one_pass(merge, case):
    experts, fishers = case
    states = [{"w": expert} for expert in experts]
    given = {"statistics": [{"w": values} for values in fishers]}
    merged = merge("fisher", states, more=given, fisher_norm="tensor")
    assert merged.report.passes == 1


def test_equal_fishers_give_the_average(merge, case):
    experts, fishers = case
    got = run(merge, experts, [fishers[2]] * 3)
    torch.testing.assert_close(got, sum(experts) / 3)


def test_a_factor_on_one_fisher_is_normalised_away(merge, case):
    experts, fishers = case
    moved = [1e6 * fishers[0], *fishers[1:]]
    rule = {"fisher_norm": "model", "floor": 0.0}
    torch.testing.assert_close(
        run(merge, experts, moved, **rule), run(merge, experts, fishers, **rule)
    )


def test_a_dominant_fisher_wins_without_normalisation(merge, case):
    experts, fishers = case
    moved = [fishers[0], fishers[1], 1e9 * (fishers[2] + 1)]
    got = run(merge, experts, moved, fisher_norm="none")
    torch.testing.assert_close(got, experts[2])


def test_result_lies_between_the_experts(merge, case):
    experts, _ = case
    got, stack = run(merge, *case), torch.stack(experts)
    assert bool((got <= stack.amax(0) + 1e-5).all())
    assert bool((got >= stack.amin(0) - 1e-5).all())


@pytest.mark.parametrize("norm", ["none", "model", "tensor"])
@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_all_zero_fishers_give_the_weighted_average(merge, draw, norm, floor):
    experts = [draw(5), draw(5)]
    rule = {"fisher_norm": norm, "floor": floor, "weights": [1.0, 3.0]}
    got = run(merge, experts, [torch.zeros(5)] * 2, **rule)
    torch.testing.assert_close(got, (experts[0] + 3 * experts[1]) / 4)


@pytest.mark.parametrize("norm", ["none", "model", "tensor"])
def test_an_expert_without_information_has_no_say(merge, draw, norm):
    experts = [draw(5), draw(5)]
    got = run(merge, experts, [torch.ones(5), torch.zeros(5)], fisher_norm=norm)
    torch.testing.assert_close(got, experts[0], rtol=1e-4, atol=1e-4)


def test_target_wins_where_all_vanish(merge, draw):
    experts = [draw(5), draw(5)]
    got = run(merge, experts, [torch.zeros(5), torch.zeros(5)], favor_target=True)
    torch.testing.assert_close(got, experts[0])


def test_very_small_fishers_do_not_leave_the_range(merge, case):
    experts, fishers = case
    tiny = [1e-30 * values for values in fishers]
    rule = {"fisher_norm": "model", "floor": 0.0}
    got = run(merge, experts, tiny, **rule)
    torch.testing.assert_close(got, run(merge, experts, fishers, **rule))
