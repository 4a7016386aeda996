"""Histogram selection, against sorting everything."""

from __future__ import annotations

import pytest
import torch

from mtk_methods_weights._trimming import (
    equal_counts,
    high_counts,
    low_counts,
    patterns,
    rank,
    trim,
)


def scan(model, density, keep_rule):
    """The passes as the engine runs them: equal keys are added up over tensors."""
    summary = {}
    for function, given in (
        (high_counts, {}),
        (low_counts, {"keep_rule": keep_rule}),
        (equal_counts, {}),
    ):
        sums = {}
        for name, deltas in model.items():
            more = dict(given)
            if function is not high_counts:
                more["summary"] = summary
            if function is equal_counts:
                more["name"] = name
            for key, value in function(deltas, density=density, **more).items():
                sums[key] = sums[key] + value if key in sums else value
        summary |= sums
        if function is low_counts and keep_rule == "at_least":
            break
    return summary


def run(model, density, scope, keep_rule):
    summary = scan(model, density, keep_rule) if scope == "global" else {}
    return {
        name: trim(
            deltas,
            density=density,
            threshold_scope=scope,
            keep_rule=keep_rule,
            summary=summary,
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
