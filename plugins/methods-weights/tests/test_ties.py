"""ties, against the published algorithm on whole vectors."""

from __future__ import annotations

import pytest
import torch


def flatten(state, base):
    return torch.cat([(state[n] - base[n]).flatten() for n in sorted(base)])


def restore(vector, base, scale):
    result, start = {}, 0
    for name in sorted(base):
        size = base[name].numel()
        part = vector[start : start + size].view(base[name].shape)
        result[name], start = base[name] + scale * part, start + size
    return result


def reference(
    base, experts, *, density=0.2, scale=1.0, merge_func="mean", weights=None
):
    """Trim, elect and merge as in the paper: global, at least, majority."""
    vectors = torch.stack([flatten(expert, base) for expert in experts])
    n = vectors.shape[1]
    if density < 1:
        k = n - int(n * density)
        smallest = vectors.abs().kthvalue(k, dim=1, keepdim=True).values
        vectors = vectors * (vectors.abs() >= smallest)
    w = torch.tensor(weights or [1.0] * len(experts))[:, None]
    vectors = w * vectors
    signs = vectors.sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    kept = torch.where(signs > 0, vectors * (vectors > 0), vectors * (vectors < 0))
    if merge_func == "max":
        merged = kept.abs().amax(0) * signs
    else:
        merged = kept.sum(0)
        if merge_func == "mean":
            agreeing = (w * (kept != 0)).sum(0)
            merged = merged / torch.where(agreeing == 0, 1.0, agreeing)
    return restore(merged, base, scale)


@pytest.mark.parametrize("merge_func", ["mean", "sum", "max"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.7, 1.0])
def test_published_algorithm(merge, models, merge_func, density):
    base, experts = models(4)
    params = {"density": density, "scale": 0.8, "merge_func": merge_func}
    want = reference(base, experts, **params)
    torch.testing.assert_close(merge("ties", experts, base, **params).tensors, want)


@pytest.mark.parametrize("merge_func", ["mean", "sum", "max"])
def test_weights(merge, models, merge_func):
    base, experts = models(3)
    params = {"weights": [0.5, 2.0, 1.0], "density": 0.6, "merge_func": merge_func}
    want = reference(base, experts, **params)
    torch.testing.assert_close(merge("ties", experts, base, **params).tensors, want)


def opposed(majority):
    """Entry 0 sums to zero; the other entries decide the majority."""
    base = {"w": torch.zeros(3)}
    one = {"w": torch.tensor([2.0, majority, majority])}
    two = {"w": torch.tensor([-2.0, majority, majority])}
    return base, [one, two]


@pytest.mark.parametrize(
    ("sign_tie", "majority", "want"),
    [
        ("majority", 1.0, 2.0),
        ("majority", -1.0, -2.0),
        ("majority", 0.0, -2.0),
        ("positive", -1.0, 2.0),
        ("negative", 1.0, -2.0),
    ],
)
@pytest.mark.parametrize("merge_func", ["mean", "sum", "max"])
def test_zero_sums(merge, sign_tie, majority, want, merge_func):
    base, experts = opposed(majority)
    params = {"sign_tie": sign_tie, "merge_func": merge_func, "density": 1.0}
    merged = merge("ties", experts, base, **params).tensors["w"]
    assert float(merged[0]) == want


def test_scans_run_only_when_needed(merge, models):
    base, experts = models()
    free = {"threshold_scope": "tensor", "sign_tie": "positive"}
    assert merge("ties", experts, base, **free).report.passes == 3
    assert merge("ties", experts, base, density=1.0, **free).report.passes == 1
    assert merge("ties", experts, base, density=1.0).report.passes == 2
    assert merge("ties", experts, base).report.passes == 4
    assert merge("ties", experts, base, keep_rule="exact").report.passes == 5


def test_density_ends(merge, models):
    base, (expert, *_) = models()
    nothing = merge("ties", [expert], base, density=0.0).tensors
    assert all(torch.equal(nothing[name], base[name]) for name in base)
    all_ = merge("ties", [expert, dict(expert)], base, density=1.0).tensors
    torch.testing.assert_close(all_, expert)


def test_exact_counts_with_equal_magnitudes(merge):
    base = {"a": torch.zeros(6), "b": torch.zeros(4)}
    expert = {"a": torch.ones(6), "b": torch.ones(4)}
    params = {"density": 0.5, "keep_rule": "exact"}
    merged = merge("ties", [expert], base, **params).tensors
    assert merged["a"].tolist() == [1.0] * 5 + [0.0]
    assert merged["b"].tolist() == [0.0] * 4
    params["threshold_scope"] = "tensor"
    merged = merge("ties", [expert], base, **params).tensors
    assert merged["a"].tolist() == [1.0] * 3 + [0.0] * 3
    assert merged["b"].tolist() == [1.0] * 2 + [0.0] * 2


def test_scaling_and_negating_all_task_vectors(merge, models):
    base, experts = models()
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    deltas = [{n: e[n] - base[n] for n in base} for e in experts]
    plain = merge("ties", deltas, zero, density=0.5).tensors
    for factor in (4.0, -1.0):
        moved = [{n: factor * t for n, t in d.items()} for d in deltas]
        got = merge("ties", moved, zero, density=0.5).tensors
        torch.testing.assert_close(got, {n: factor * t for n, t in plain.items()})


def test_a_zero_task_vector_is_never_counted(merge, models):
    base, experts = models()
    one = merge("ties", [*experts, dict(base)], base).tensors
    torch.testing.assert_close(one, merge("ties", experts, base).tensors)


def test_tied_matrices_count_once(merge, models):
    base, experts = models()
    want = merge("ties", experts, base).tensors
    for state in (base, *experts):
        state["zz.weight"] = state["head.weight"].clone()
    got = merge("ties", experts, base).tensors
    assert torch.equal(got["zz.weight"], got["head.weight"])
    assert all(torch.equal(got[name], want[name]) for name in want)
