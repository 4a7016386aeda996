"""Correct methods of every scope and output pass every check."""

from __future__ import annotations

import functools

import pytest
import torch

import mtk
from mtk.testing import CHECKS, check_method

PAPER = "unpublished"


def mean(*, experts):
    return torch.stack(experts).mean(0)


def add(*, experts, base, scale):
    return base + scale * (mean(experts=experts) - base)


def precise(*, experts, fisher):
    if any(f is None for f in fisher):
        return mean(experts=experts)
    weights = [f + 1e-8 for f in fisher]
    total = sum(w * e for w, e in zip(weights, experts, strict=True))
    return total / sum(weights)


def solve(*, experts, gram):
    if any(g is None for g in gram):
        return mean(experts=experts)
    gram = [g.double() for g in gram]
    total = sum(gram) + 1e-4 * torch.eye(len(gram[0]))
    right = sum(e.double() @ g for e, g in zip(experts, gram, strict=True))
    right = right + 1e-4 * mean(experts=experts)
    return torch.linalg.solve(total, right, left=False).to(experts[0].dtype)


def drop(*, experts, base, random):
    kept = [
        random.keep_mask(i, 0.5, base) * (expert - base) / 0.5
        for i, expert in enumerate(experts)
    ]
    return base + mean(experts=kept)


def norms(*, experts, base, summary):
    return {"square": sum(((e - base).double() ** 2).sum() for e in experts)}


def clipped(*, experts, base, summary):
    scale = min(1.0, 1.0 / max(float(summary["square"]) ** 0.5, 1e-12))
    return base + scale * (mean(experts=experts) - base)


def signs(*, experts, base):
    vectors = [expert - base for expert in experts]
    codes = [
        {"sign": torch.sign(v).to(torch.int8), "size": v.abs().sum()} for v in vectors
    ]
    return mtk.PerTask(mean(experts=vectors), codes)


def restore(*, shared, code, base):
    count = max(shared.numel(), 1)
    return base + code["sign"] * (code["size"] / count) + 0 * shared


def layers(*, experts, base, info, power):
    vectors = torch.stack([expert - base for expert in experts])
    if info.role == "linear":
        return mtk.Routed(base, {"weights": vectors})
    if info.role == "bias":
        return mtk.Routed(base, {"biases": vectors})
    return mtk.Routed(base + vectors.mean(0))


def strongest(*, x, parts, power):
    outputs = torch.einsum("koi,...i->k...o", parts["weights"], x)
    outputs = outputs + parts["biases"][:, None]
    share = outputs.norm(dim=-1, keepdim=True) ** power
    return (outputs * share / share.sum(0).clamp_min(1e-30)).sum(0)


def learn(*, experts, base, tasks, steps, learning_rate, random):
    scales = torch.full((len(experts),), 0.3, requires_grad=True)
    optimizer = torch.optim.SGD([scales], lr=learning_rate)
    streams = [task.batches(16, random.generator(i)) for i, task in enumerate(tasks)]

    def merged():
        return {
            name: tensor
            + sum(s * (e[name] - tensor) for s, e in zip(scales, experts, strict=True))
            for name, tensor in base.items()
        }

    for _ in range(steps):
        optimizer.zero_grad()
        for task, stream in zip(tasks, streams, strict=True):
            p = task.logits(merged(), next(stream)).softmax(-1)
            (-(p * p.clamp_min(1e-12).log()).sum(-1).mean()).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in merged().items()}


def method(name, target, **more):
    return mtk.Method(
        name=name, target=target, summary="For a test", paper=PAPER, **more
    )


BASE = mtk.Needs(base=True)
GOOD = (
    method("mean", mean, idempotent=True),
    method(
        "add",
        add,
        needs=BASE,
        params=(mtk.Param("scale", 0.5, grid=(0.1, 0.5, 1.0), low=0.0),),
    ),
    method(
        "precise", precise, needs=mtk.Needs(statistics=("fisher",)), idempotent=True
    ),
    method(
        "solve",
        solve,
        needs=mtk.Needs(statistics=("gram",)),
        scope="tensor",
        idempotent=True,
    ),
    method(
        "drop",
        drop,
        needs=BASE,
        scope="tensor",
        stochastic=True,
        params=(mtk.Param("seed", 0, low=0),),
    ),
    method("clipped", clipped, needs=BASE, scope="two-pass", scans=(mtk.Scan(norms),)),
    method(
        "signs",
        signs,
        needs=mtk.Needs(base=True, task_at_inference=True),
        scope="tensor",
        output="per_task",
        decode=restore,
    ),
    method(
        "layers",
        layers,
        needs=mtk.Needs(base=True, info=True),
        scope="tensor",
        output="routed",
        route=strongest,
        params=(mtk.Param("power", 2.0, low=0.0),),
        idempotent=True,
    ),
    method(
        "learn",
        learn,
        needs=mtk.Needs(base=True, data="unlabelled", gradients=True),
        scope="model",
        stochastic=True,
        params=(
            mtk.Param("steps", 500, low=1),
            mtk.Param("learning_rate", 0.1, low=0.0, open_low=True),
            mtk.Param("seed", 0, low=0),
        ),
    ),
    method("pair", mean, needs=mtk.Needs(experts=(2, 2)), idempotent=True),
    method("many", mean, needs=mtk.Needs(experts=(6, None)), idempotent=True),
    method("products", mean, needs=mtk.Needs(checkpoints=("lora",)), idempotent=True),
)


@functools.cache
def checked(name):
    (good,) = [method for method in GOOD if method.name == name]
    return check_method(good)


@pytest.mark.parametrize("name", [good.name for good in GOOD])
def test_a_good_method_passes(name):
    report = checked(name)
    assert report.ok, "\n\n".join(result.message for result in report.failures)
    assert [result.id for result in report.results] == [check.id for check in CHECKS]


def test_every_check_applies_to_some_good_method():
    applied = {
        result.id
        for good in GOOD
        for result in checked(good.name).results
        if result.outcome != "not applicable"
    }
    # Only an installed plugin has a module that can be imported alone.
    assert {check.id for check in CHECKS} - applied == {"declaration.no-torch"}
