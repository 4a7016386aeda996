"""Every check can fail: for each, a method that breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mtk
from mtk import Needs, Param
from mtk.loading import Plugin, Provided
from mtk.results import Merged
from mtk.testing import CHECKS, check_method
from mtk.testing._checks import run_check, subject_of

BASE = Needs(base=True)
FISHER = Needs(statistics=("fisher",))
DATA = Needs(data="unlabelled", gradients=True)
SCALE = (Param("scale", 1.0, grid=(0.0, 1.0)),)


def mean(*, experts):
    return torch.stack(experts).mean(0)


def state_mean(experts):
    return {name: mean(experts=[e[name] for e in experts]) for name in experts[0]}


def raises(*, experts):
    raise ValueError("no such luck")


def changes_bytes(*, experts):
    experts[0].data.add_(1)  # the counter of in-place changes does not see this
    return mean(experts=experts)


def changes_in_place(*, experts):
    experts[0].mul_(2)
    return mean(experts=experts)


def changes_summands(*, experts, base, summary):
    return mean(experts=experts)


def scan_changes(*, experts, base, summary):
    base.add_(1)
    return {"total": base.sum()}


def flattens(*, experts):
    return mean(experts=experts).flatten()[:2]


def divides_by_zero(*, experts):
    return mean(experts=experts) / 0


def nan_in_codes(*, experts, base):
    codes = [{"scale": torch.tensor(float("nan"))} for _ in experts]
    return mtk.PerTask(base, codes)


def use_code(*, shared, code, base):
    return shared + code["scale"].nan_to_num()


def halves(*, experts):
    return torch.stack([expert.half() for expert in experts]).mean(0)


def shared_decode(*, shared, code):
    return shared


CALLS = []


def differences(*, experts, base):
    return mtk.PerTask(mean(experts=experts), [{"d": e - base} for e in experts])


def forgetful_decode(*, shared, code, base):
    CALLS.append(code)
    return base + code["d"] * len(CALLS)


def likes_bfloat16(*, experts, info):
    return mean(experts=experts) * (1.5 if info.dtype == "bfloat16" else 1)


def seedless(*, experts):
    return mean(experts=experts) + 0.01 * torch.randn(experts[0].shape)


def ignores_seed(*, experts, random):
    return mean(experts=experts)


PREVIOUS = {}


def remembers(*, experts, info):
    if info.name == "embed.weight":
        PREVIOUS.clear()
    before = sum(PREVIOUS.values())
    PREVIOUS[info.name] = 1.0
    return mean(experts=experts) * (1 + before)


def looks_around(*, experts):
    result = mean(experts=experts)
    return result - result.mean() if result.numel() else result


def needs_rows(*, experts):
    assert experts[0].shape[0] >= 0
    return mean(experts=experts)


def needs_matrices(*, experts):
    if experts[0].ndim == 4:
        raise NotImplementedError
    return mean(experts=experts)


def needs_entries(*, experts):
    return mean(experts=experts) + 0 * experts[0].max()


def needs_second(*, experts):
    return experts[0] + 0 * experts[1]


def not_two(*, experts):
    assert len(experts) != 2
    return mean(experts=experts)


def at_most_four(*, experts):
    return torch.einsum(
        "k,k...->...", torch.ones(4)[: len(experts)], torch.stack(experts)
    )


def not_more_than_rank(*, experts):
    assert len(experts) <= min(experts[0].shape or [9]) or experts[0].ndim != 2
    return mean(experts=experts)


def divides_by_norm(*, experts, base):
    vectors = [expert - base for expert in experts]
    return base + sum(vector / vector.norm() for vector in vectors)


def divides_by_spread(*, experts):
    return mean(experts=experts) / torch.stack(experts).std(0, correction=0)


def overflows(*, experts):
    return mean(experts=[expert**10 for expert in experts])


def expects_fisher(*, experts, fisher):
    weights = [f + 1e-6 for f in fisher]
    return sum(w * e for w, e in zip(weights, experts, strict=True)) / sum(weights)


def divides_by_fisher(*, experts, fisher):
    if fisher[0] is None:
        return mean(experts=experts)
    return sum(f * e for f, e in zip(fisher, experts, strict=True)) / sum(fisher)


def ignores_fisher(*, experts, fisher):
    return mean(experts=experts)


def divides_by_scale(*, experts, scale):
    return mean(experts=experts) / scale


def hopes_for_base(*, experts, base=None):
    return mean(experts=experts)


def ignores_base(*, experts, base):
    return mean(experts=experts)


def ignores_data(*, experts, tasks):
    return state_mean(experts)


def without_gradients(*, experts, tasks):
    with torch.no_grad():
        merged = state_mean(experts)
        size = sum(float(t.logits(merged, t.inputs).abs().sum()) for t in tasks)
    return {name: tensor * (1 + 1e-3 * size) for name, tensor in merged.items()}


def with_gradients(*, experts, tasks):
    with torch.enable_grad():
        merged = {n: t.clone().requires_grad_() for n, t in state_mean(experts).items()}
        loss = sum(task.logits(merged, task.inputs).square().sum() for task in tasks)
        names = [name for name in merged if name.startswith("head")]
        grads = torch.autograd.grad(loss, [merged[name] for name in names])
    step = dict(zip(names, grads, strict=True))
    return {
        n: t.detach() - 1e-3 * step.get(n, torch.zeros(())) for n, t in merged.items()
    }


def ignores_labels(*, experts, tasks):
    return without_gradients(experts=experts, tasks=tasks)


def first_counts_twice(*, experts):
    return (experts[0] + sum(experts)) / (len(experts) + 1)


def total(*, experts):
    return sum(experts)


def adds_one(*, experts, base):
    return mean(experts=experts) + 0 * base + 1


def wants_embedding(*, experts):
    assert "embed.weight" in experts[0]
    return state_mean(experts)


def wants_more(*, experts, density):
    return mean(experts=experts)


def broken(target, **more):
    values = {"name": "broken", "summary": "For a test", "paper": "unpublished"}
    return mtk.Method(**(values | {"target": target} | more))


PER_TASK = {"output": "per_task", "scope": "tensor"}
SEED = {"stochastic": True, "scope": "tensor", "params": (Param("seed", 0),)}
TWICE = (Param("scale", 1.0, grid=(0.5, 0.5)),)
SCANNED = {"needs": BASE, "scope": "two-pass", "scans": (mtk.Scan(scan_changes),)}
BROKEN = [
    ("declaration.targets", broken("no_such_package:merge")),
    ("declaration.targets", broken("mtk:__version__")),
    ("declaration.signature", broken(wants_more)),
    ("declaration.signature", broken(mean, params=SCALE)),
    ("declaration.signature", broken(mean, needs=BASE)),
    ("declaration.grid", broken(divides_by_scale, params=TWICE)),
    ("declaration.summary", broken(mean, summary="two\nlines")),
    ("declaration.paper", broken(mean, paper="")),
    ("contract.runs", broken(raises)),
    ("contract.runs", broken(mean, output="per_task", decode=shared_decode)),
    ("contract.inputs-untouched", broken(changes_bytes)),
    ("contract.inputs-untouched", broken(changes_in_place)),
    ("contract.inputs-untouched", broken(changes_summands, **SCANNED)),
    ("contract.shapes", broken(flattens)),
    ("contract.finite", broken(divides_by_zero)),
    ("contract.finite", broken(nan_in_codes, decode=use_code, needs=BASE, **PER_TASK)),
    ("contract.arithmetic", broken(halves)),
    ("contract.bfloat16", broken(likes_bfloat16, needs=Needs(info=True))),
    ("contract.same-twice", broken(seedless)),
    ("contract.seeds", broken(ignores_seed, **SEED)),
    ("contract.order", broken(remembers, needs=Needs(info=True))),
    ("contract.chunks", broken(looks_around)),
    (
        "contract.files",
        broken(differences, decode=forgetful_decode, needs=BASE, **PER_TASK),
    ),
    ("contract.scalar", broken(needs_rows)),
    ("contract.convolution", broken(needs_matrices)),
    ("contract.empty", broken(needs_entries)),
    ("contract.one-expert", broken(needs_second)),
    ("contract.two-experts", broken(not_two)),
    ("contract.five-experts", broken(at_most_four)),
    ("contract.more-than-rank", broken(not_more_than_rank)),
    ("contract.equal-to-base", broken(divides_by_norm, needs=BASE)),
    ("contract.identical-experts", broken(divides_by_spread)),
    ("contract.low-rank", broken(divides_by_norm, needs=BASE)),
    ("contract.magnitudes", broken(overflows)),
    ("contract.missing-statistics", broken(expects_fisher, needs=FISHER)),
    ("contract.silent-statistics", broken(divides_by_fisher, needs=FISHER)),
    ("contract.grid-values", broken(divides_by_scale, params=SCALE)),
    ("needs.nothing-undeclared", broken(hopes_for_base)),
    ("needs.base", broken(ignores_base, needs=BASE)),
    ("needs.statistics", broken(ignores_fisher, needs=FISHER)),
    ("needs.data", broken(ignores_data, needs=DATA, scope="model")),
    (
        "needs.data",
        broken(ignores_labels, needs=Needs(data="labelled"), scope="model"),
    ),
    ("needs.gradients", broken(without_gradients, needs=DATA, scope="model")),
    (
        "needs.gradients",
        broken(with_gradients, needs=replace(DATA, gradients=False), scope="model"),
    ),
    (
        "needs.task-at-inference",
        broken(differences, decode=forgetful_decode, needs=BASE, **PER_TASK),
    ),
    ("invariants.symmetric", broken(first_counts_twice)),
    ("invariants.idempotent", broken(total, idempotent=True)),
    ("invariants.identity-at-zero", broken(adds_one, needs=BASE)),
    ("protocol.bench", broken(wants_embedding, scope="model")),
]
# What the core does for every method, and what only an installed plugin can break.
BY_THE_CORE = {
    "contract.dtypes",
    "contract.non-contiguous",
    "contract.counters",
    "contract.tied",
    "contract.refuses-nan",
    "contract.refuses-shapes",
    "contract.refuses-counters",
    "needs.experts",
    "needs.checkpoints",
}
BY_A_PLUGIN = {"declaration.no-torch"}


def failed(report):
    return {result.id: result.message for result in report.failures}


@pytest.mark.parametrize(("check", "method"), BROKEN, ids=lambda value: str(value)[:40])
def test_the_right_check_fails(check, method):
    (wanted,) = [found for found in CHECKS if found.id == check]
    result = run_check(CHECKS, wanted, subject_of(method))
    assert result.outcome == "failed", result.reason
    message = result.message
    assert message.startswith(f"{check}: ")
    assert "Reproduce:" in message


def test_there_is_a_broken_method_for_every_check():
    covered = {check for check, _ in BROKEN} | BY_THE_CORE | BY_A_PLUGIN
    assert covered == {check.id for check in CHECKS}


def test_a_failed_first_merge_is_not_repeated_by_other_checks():
    report = check_method(broken(divides_by_zero))
    assert list(failed(report)) == ["contract.finite"]
    reasons = {r.reason for r in report.results if r.id == "invariants.symmetric"}
    assert reasons == {"contract.finite failed"}


def test_messages_hold_shapes_values_and_code():
    message = failed(check_method(broken(first_counts_twice)))["invariants.symmetric"]
    assert "entries differ" in message
    assert "(8, 6)" in message or "(8,)" in message or "(5, 6)" in message
    assert "case.permute(1, 2, 0)" in message
    code = message.partition("Reproduce:")[2]
    lines = [line.strip() for line in code.strip().splitlines()]
    exec("\n".join(lines), {"method": broken(first_counts_twice)})


def as_it_lies(tensor):
    """The memory of a tensor, whatever its strides say."""
    return tensor.as_strided(tensor.shape, torch.empty(tensor.shape).stride())


def careless(method, *, experts, base=None, params=None, **unused):
    """A core that checks nothing, ignores strides, and makes every dtype float."""
    del unused
    first = base or experts[0]
    tensors = {
        name: as_it_lies(first.read(name)).float() + i
        for i, name in enumerate(first.names())
    }
    return Merged(method=method, params=dict(params or {}), tensors=tensors)


@pytest.mark.parametrize("check", sorted(BY_THE_CORE))
def test_a_careless_core_is_found(check, monkeypatch):
    from mtk.testing import _models

    limited = Needs(base=True, experts=(2, 3), checkpoints=("full",))
    subject = subject_of(broken(adds_one, needs=limited))
    (found,) = [c for c in CHECKS if c.id == check]
    for needed in (other for other in CHECKS if other.id in found.requires):
        assert run_check(CHECKS, needed, subject).outcome == "passed"
    assert run_check(CHECKS, found, subject_of(subject.method)).outcome == "passed"
    monkeypatch.setattr(_models, "merge", careless)
    assert run_check(CHECKS, found, subject).outcome == "failed"


PLUGIN_SOURCE = """
{first}
import mtk

@mtk.hookimpl
def mtk_methods():
    yield mtk.Method(name="mean", target="elsewhere:mean", summary="A mean", paper="none")
"""


@pytest.mark.parametrize(
    ("first", "outcome"),
    [("", "passed"), ("import torch", "failed"), ("import no_such_module", "failed")],
)
def test_a_plugin_module_must_not_import_torch(first, outcome, tmp_path, monkeypatch):
    (tmp_path / "checked_plugin.py").write_text(PLUGIN_SOURCE.format(first=first))
    monkeypatch.syspath_prepend(tmp_path)
    plugin = Plugin(
        distribution="checked",
        version="1.0",
        entry_point="checked",
        module="checked_plugin",
        seconds=0.0,
        hooks=("mtk_methods",),
        imported_torch=False,
    )
    report = check_method(Provided(broken(raises), plugin))
    assert report.results[0].id == "declaration.no-torch"
    assert report.results[0].outcome == outcome


def test_a_plugin_in_one_file_may_import_torch():
    plugin = Plugin(
        distribution="one",
        version="file",
        entry_point="one.py",
        module="mtk_file_one",
        seconds=0.0,
        hooks=("mtk_methods",),
        imported_torch=True,
    )
    report = check_method(Provided(broken(raises), plugin))
    assert report.results[0].outcome == "not applicable"
    assert "one file" in report.results[0].reason
