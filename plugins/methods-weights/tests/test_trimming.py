"""Histogram selection, against sorting everything."""

from __future__ import annotations

import pytest
import torch

from mtk_methods_weights._trimming import (
    earlier,
    equal_counts,
    high_counts,
    located,
    low_counts,
    number,
    own_thresholds,
    patterns,
    rank,
    thresholds,
    trimmed,
)


def added(found):
    sums = {}
    for counts in found:
        for key, value in counts.items():
            sums[key] = sums[key] + value if key in sums else value
    return sums


def scan(model, densities, keep_rule, slices=3):
    """The passes as the engine runs them: equal keys are added up over tensors."""
    cut = [
        [part.flatten() for part in parts]
        for deltas in model.values()
        for parts in zip(
            *(d.flatten().tensor_split(slices) for d in deltas), strict=True
        )
    ]
    summary = added(high_counts(deltas, densities) for deltas in cut)
    summary = located(summary, densities, keep_rule)
    low = added(low_counts(d, densities, keep_rule, summary) for d in cut)
    summary = thresholds(summary | low, densities, keep_rule)
    if keep_rule == "exact":
        equal = added(
            equal_counts(d, densities, summary, name) for name, d in model.items()
        )
        summary["earlier"] = earlier(equal)
    return summary


def run(model, densities, scope, keep_rule):
    if not isinstance(densities, list):
        densities = [densities] * len(next(iter(model.values())))
    everything = (
        scan(model, densities, keep_rule)
        if scope == "global"
        else {n: own_thresholds(d, densities, keep_rule) for n, d in model.items()}
    )
    return {
        name: trimmed(
            deltas,
            densities,
            threshold_scope=scope,
            keep_rule=keep_rule,
            summary=everything if scope == "global" else everything[name],
            name=name,
        )
        for name, deltas in model.items()
    }


def reference(values, density, keep_rule):
    """One vector: what is kept, by a full stable sort."""
    n = len(values)
    if density in (0, 1):
        return values * density
    kept = int(n * density)
    if keep_rule == "exact":
        order = values.abs().sort(descending=True, stable=True).indices
        places = order[: max(1, kept)]
        return torch.zeros_like(values).index_copy(0, places, values[places])
    smallest = values.abs().sort().values[max(1, n - kept) - 1]
    return torch.where(values.abs() >= smallest, values, 0.0)


@pytest.fixture(params=["plain", "equal"])
def model(request, draw):
    """Three tensors, two experts; the second kind has many equal magnitudes."""
    shapes = {"a": (40, 7), "b": (300,), "c": (2, 3, 4)}
    made = {name: [draw(*shape), draw(*shape)] for name, shape in shapes.items()}
    if request.param == "equal":
        made = {n: [(3 * d).round() for d in deltas] for n, deltas in made.items()}
    return made


@pytest.mark.parametrize("keep_rule", ["at_least", "exact"])
@pytest.mark.parametrize("density", [0, 1e-9, 0.1, 0.2, 0.5, 0.999, 1])
def test_global(model, density, keep_rule):
    got = run(model, density, "global", keep_rule)
    for expert in (0, 1):
        flat = torch.cat([model[name][expert].flatten() for name in sorted(model)])
        want = reference(flat, density, keep_rule)
        found = torch.cat([got[name][expert].flatten() for name in sorted(model)])
        assert torch.equal(found, want)


@pytest.mark.parametrize("keep_rule", ["at_least", "exact"])
@pytest.mark.parametrize("densities", [[0.1, 0.6], [0.0, 0.3], [1.0, 0.3]])
def test_experts_have_densities_of_their_own(model, densities, keep_rule):
    got = run(model, densities, "global", keep_rule)
    for expert, density in enumerate(densities):
        flat = torch.cat([model[name][expert].flatten() for name in sorted(model)])
        found = torch.cat([got[name][expert].flatten() for name in sorted(model)])
        assert torch.equal(found, reference(flat, density, keep_rule))


@pytest.mark.parametrize("keep_rule", ["at_least", "exact"])
def test_histograms_find_what_selection_finds(draw, keep_rule):
    deltas = {"a": [draw(999), draw(999).bfloat16().float()]}
    found = scan(deltas, [0.2, 0.7], keep_rule)
    want = own_thresholds(deltas["a"], [0.2, 0.7], keep_rule)
    assert found["thresholds"] == want["thresholds"]
    if keep_rule == "exact":
        assert found["quotas"] == want["quotas"]


@pytest.mark.parametrize("keep_rule", ["at_least", "exact"])
@pytest.mark.parametrize("density", [0, 0.1, 0.5, 1])
def test_tensor(model, density, keep_rule):
    got = run(model, density, "tensor", keep_rule)
    for name, deltas in model.items():
        for delta, found in zip(deltas, got[name], strict=True):
            want = reference(delta.flatten(), density, keep_rule)
            assert torch.equal(found.flatten(), want)


def test_counts():
    assert rank(10, 0.2, "at_least") == 8  # 3 of 10 survive, as in the official code
    assert rank(10, 0.2, "exact") == 9
    assert rank(10, 0.01, "exact") == 10


def test_numbers_of_patterns():
    values = torch.tensor([0.0, 1e-45, 1e-38, 0.1, 1.0, 3e38])
    assert [number(int(bits)) for bits in patterns(values)] == values.tolist()


def test_all_exponents_are_ordered():
    values = torch.tensor([0.0, 1e-45, 1e-38, 1e-20, 1.0, 1.0000001, 3e38])
    bits = patterns(-values)
    assert bits.tolist() == sorted(bits.tolist())
    assert len(set(bits.tolist())) == len(values)


def test_float64_is_compared_in_float32(draw):
    deltas = [draw(50, dtype=torch.float64)]
    (got,) = run({"a": deltas}, 0.3, "global", "at_least")["a"]
    assert got.dtype == torch.float64
    assert torch.equal(got, reference(deltas[0], 0.3, "at_least"))


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("keep_rule", ["at_least", "exact"])
def test_empty_and_single_entries(scope, keep_rule):
    model = {"a": [torch.zeros(0, 3)], "b": [torch.tensor(2.0)]}
    got = run(model, 0.5, scope, keep_rule)
    assert got["a"][0].shape == (0, 3)
    assert torch.equal(got["b"][0], torch.tensor(2.0))


def test_all_zero_expert_is_kept_as_zero():
    (got,) = run({"a": [torch.zeros(9)]}, 0.2, "global", "at_least")["a"]
    assert torch.equal(got, torch.zeros(9))
