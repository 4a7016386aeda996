"""dare: what is dropped, how the rest is rescaled, and what follows."""

from __future__ import annotations

import pytest
import torch


def one(tensor):
    return {"w": tensor}


def zeros(*shape):
    return one(torch.zeros(shape))


def masks_of(experts, density=0.5):
    """Given masks, drawn here, so that every entry can be predicted."""
    generator = torch.Generator().manual_seed(3)
    return {
        f"mask.{i}.{name}": torch.rand(tensor.shape, generator=generator) < density
        for i, expert in enumerate(experts)
        for name, tensor in expert.items()
    }


@pytest.mark.parametrize("rescale", ["probability", "l1", "none"])
@pytest.mark.parametrize("normalize", [True, False])
def test_formula_with_given_masks(merge, models, rescale, normalize):
    base, experts = models()
    masks, weights = masks_of(experts), [1.0, 0.5, 2.0]
    params = {
        "rescale": rescale,
        "normalize": normalize,
        "weights": weights,
        "scale": 0.7,
    }
    got = merge("dare", experts, base, {"masks": masks}, **params).tensors
    for name, tensor in base.items():
        total = torch.zeros_like(tensor)
        for i, expert in enumerate(experts):
            delta, mask = expert[name] - tensor, masks[f"mask.{i}.{name}"]
            kept = delta * mask
            if rescale == "probability":
                kept = kept / 0.5
            elif rescale == "l1" and kept.abs().sum() > 0:
                kept = kept * delta.abs().sum() / kept.abs().sum()
            total += weights[i] * kept
        divisor = sum(weights) if normalize else 1.0
        torch.testing.assert_close(got[name], tensor + 0.7 * total / divisor)


def test_entries_are_scaled_or_zero_and_their_share_is_right(merge):
    delta = torch.ones(200, 200)
    got = merge("dare", [one(delta)], zeros(200, 200), density=0.25, scale=1.0).tensors[
        "w"
    ]
    assert set(got.unique().tolist()) == {0.0, 4.0}
    # Standard deviation of the share: sqrt(0.25 * 0.75 / 40000) = 0.0022.
    assert abs(float((got > 0).float().mean()) - 0.25) < 0.01


def test_the_mean_over_seeds_is_the_task_vector(merge, draw):
    delta, count = draw(30), 600
    total = torch.zeros(30)
    for seed in range(count):
        params = {"density": 0.5, "scale": 1.0, "seed": seed}
        total += merge("dare", [one(delta)], zeros(30), **params).tensors["w"]
    # One entry varies by |delta|; six standard deviations of the mean.
    assert bool(((total / count - delta).abs() < 6 * delta.abs() / count**0.5).all())


def test_seeds_and_experts_have_streams_of_their_own(merge):
    ones, base = one(torch.ones(100)), zeros(100)
    draws = [merge("dare", [ones], base, seed=seed).tensors["w"] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    second = merge("dare", [base, ones], base, seed=1).tensors["w"]
    assert not torch.equal(draws[0], second)


@pytest.mark.parametrize("rescale", ["probability", "l1", "none"])
@pytest.mark.parametrize("rule", ["task_arithmetic", "ties"])
def test_density_ends(merge, models, rescale, rule):
    base, experts = models()
    params = {"rescale": rescale, "merge": rule, "scale": 0.4}
    dropped = merge("dare", experts, base, density=0.0, **params).tensors
    assert all(torch.equal(dropped[name], base[name]) for name in base)
    kept = merge("dare", experts, base, density=1.0, **params).tensors
    plain = {"density": 1.0} if rule == "ties" else {}
    torch.testing.assert_close(
        kept, merge(rule, experts, base, scale=0.4, **plain).tensors
    )


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("keep_rule", ["at_least", "exact"])
def test_ties_of_the_sparsified_experts(merge, models, scope, keep_rule):
    """The same as ties of experts that were sparsified beforehand."""
    base, experts = models()
    masks = masks_of(experts, 0.8)
    sparse = [
        {
            name: base[name]
            + (expert[name] - base[name]) * masks[f"mask.{i}.{name}"] / 0.8
            for name in base
        }
        for i, expert in enumerate(experts)
    ]
    rule = {
        "threshold_scope": scope,
        "keep_rule": keep_rule,
        "weights": [1.0, 2.0, 1.0],
    }
    got = merge(
        "dare",
        experts,
        base,
        {"masks": masks},
        density=0.8,
        merge="ties",
        ties_density=0.4,
        scale=0.9,
        **rule,
    )
    want = merge("ties", sparse, base, density=0.4, scale=0.9, **rule)
    torch.testing.assert_close(got.tensors, want.tensors)
    exact = keep_rule == "exact"
    passes = 4 - exact if scope == "tensor" else 4 + exact
    assert got.report.passes == passes


def test_task_arithmetic_needs_one_pass(merge, models):
    base, experts = models()
    assert merge("dare", experts, base).report.passes == 1


def test_l1_norm_is_kept(merge, draw):
    delta = draw(500)
    got = merge("dare", [one(delta)], zeros(500), rescale="l1", scale=1.0).tensors["w"]
    torch.testing.assert_close(got.abs().sum(), delta.abs().sum())
