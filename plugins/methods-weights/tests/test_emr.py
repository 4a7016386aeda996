"""emr, against the paper's five steps."""

from __future__ import annotations

import pytest
import torch

from mtk_methods_weights.emr import pack, unpack


def reference(base, experts, rescaler):
    deltas = [{n: e[n] - base[n] for n in base} for e in experts]
    unified, masks, tasks = {}, [{} for _ in experts], []
    for name in base:
        tau = torch.stack([delta[name] for delta in deltas])
        sign = torch.where(tau.mean(0) > 0, 1.0, -1.0)
        agreeing = torch.where(tau * sign > 0, tau.abs(), 0.0)
        unified[name] = agreeing.amax(0) * sign
        for mask, row in zip(masks, tau, strict=True):
            mask[name] = row * sign > 0
    names = [name for name in base if base[name].numel()]
    size = (
        (lambda t: t.abs().sum())
        if rescaler == "global"
        else (lambda t: t.abs().mean())
    )
    for delta, mask in zip(deltas, masks, strict=True):
        own = sum(size(delta[n]) for n in names)
        left = sum(size(unified[n] * mask[n]) for n in names)
        tasks.append({n: base[n] + own / left * mask[n] * unified[n] for n in base})
    return unified, tasks


@pytest.mark.parametrize("rescaler", ["global", "tensor_mean"])
def test_published_steps(merge, models, rescaler):
    base, experts = models(4)
    merged = merge("emr", experts, base, rescaler=rescaler)
    unified, tasks = reference(base, experts, rescaler)
    torch.testing.assert_close(merged.tensors, unified)
    for index, want in enumerate(tasks):
        torch.testing.assert_close(merged.task(index), want)


def test_global_keeps_the_l1_norm(merge, models):
    base, experts = models(3)
    merged = merge("emr", experts, base)
    for index, expert in enumerate(experts):
        task = merged.task(index)
        got = sum((task[n] - base[n]).abs().sum() for n in base)
        torch.testing.assert_close(
            got, sum((expert[n] - base[n]).abs().sum() for n in base)
        )


@pytest.mark.parametrize("count", [1, 3])
def test_identical_experts_come_back(merge, models, count):
    base, (expert, *_) = models()
    merged = merge("emr", [dict(expert) for _ in range(count)], base)
    torch.testing.assert_close(merged.task(count - 1), expert)


def test_an_expert_equal_to_the_base(merge, models):
    base, (expert, *_) = models()
    merged = merge("emr", [expert, dict(base)], base)
    torch.testing.assert_close(merged.task(0), expert)
    torch.testing.assert_close(merged.task(1), base)
    assert float(merged.codes[1]["fc.weight"]["rescaler"]) == 0.0


def test_an_expert_that_never_agrees(merge):
    base = {"w": torch.zeros(3)}
    strong, weak = {"w": torch.full((3,), 5.0)}, {"w": torch.full((3,), -1.0)}
    merged = merge("emr", [strong, weak], base)
    assert float(merged.codes[1]["w"]["rescaler"]) == 1.0
    assert torch.equal(merged.task(1)["w"], base["w"])


def test_scaling_changes_only_the_unified_vector(merge, models):
    base, experts = models()
    zero = {n: torch.zeros_like(t) for n, t in base.items()}
    deltas = [{n: e[n] - base[n] for n in base} for e in experts]
    one = merge("emr", deltas, zero)
    two = merge("emr", [{n: 4 * t for n, t in d.items()} for d in deltas], zero)
    torch.testing.assert_close(two.tensors, {n: 4 * t for n, t in one.tensors.items()})
    for a, b in zip(one.codes, two.codes, strict=True):
        assert all(torch.equal(a[n]["mask"], b[n]["mask"]) for n in base)
        torch.testing.assert_close(a["scale"]["rescaler"], b["scale"]["rescaler"])


def test_masks_take_one_bit_per_entry(merge, models):
    base, experts = models(2)
    merged = merge("emr", experts, base)
    assert merged.codes[0]["head.weight"]["mask"].numel() == -(-45 // 8)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 40])
def test_packing(count):
    mask = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    assert torch.equal(unpack(pack(mask), count), mask)
