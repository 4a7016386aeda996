from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import mtk
from mtk import engine
from mtk.errors import CheckpointError, MethodError, UsageError
from mtk.loading import Provided
from mtk.results import PerTask, Routed

if TYPE_CHECKING:
    from pathlib import Path

EMPTY = mtk.load(["/dev/null"][:0])


def mean(*, experts):
    return sum(experts) / len(experts)


def declare(target, **changes):
    return mtk.Method(**{"name": "m", "target": target, "summary": "s"} | changes)


def models(
    count: int = 2, dtype: torch.dtype = torch.float32
) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "a.weight": torch.randn(4, 6, generator=generator).to(dtype),
            "a.bias": torch.randn(4, generator=generator).to(dtype),
            "scalar": torch.randn((), generator=generator).to(dtype),
            "empty": torch.zeros(0, 3, dtype=dtype),
            "steps": torch.tensor([1, 2, 3]),
        }
        for _ in range(count)
    ]


def run(target, experts, base=None, **changes):
    declared = target if isinstance(target, mtk.Method) else declare(target)
    return mtk.merge(declared, experts=experts, base=base, registry=EMPTY, **changes)


def test_every_tensor_is_merged_and_integers_are_copied() -> None:
    one, two = models()
    merged = run(mean, [one, two])
    torch.testing.assert_close(
        merged.tensors["a.weight"], (one["a.weight"] + two["a.weight"]) / 2
    )
    assert torch.equal(merged.tensors["steps"], one["steps"])
    assert merged.report.copied == ["steps"]
    assert merged.tensors["empty"].shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    experts = models(3, dtype)
    seen = []

    def watch(*, experts):
        seen.extend(tensor.dtype for tensor in experts)
        return mean(experts=experts)

    merged = run(watch, experts)
    want = torch.stack([e["a.weight"].float() for e in experts]).sum(0) / 3
    assert torch.equal(merged.tensors["a.weight"], want.to(dtype))
    assert set(seen) == {torch.float32}


def test_float64_stays_float64() -> None:
    merged = run(mean, models(2, torch.float64))
    assert merged.tensors["a.weight"].dtype == torch.float64


def test_a_method_receives_what_it_declared_and_nothing_else() -> None:
    got: dict[str, object] = {}

    def greedy(**given):
        got.update(given)
        return given["experts"][0]

    run(declare(greedy), models(), base=models()[0])
    assert set(got) == {"experts"}
    needs = mtk.Needs(base=True, info=True)
    method = declare(greedy, needs=needs, params=(mtk.Param("x", 1.0),))
    run(method, models(), base=models()[0])
    assert set(got) == {"experts", "base", "info", "x"}


def test_an_optional_base_is_none_where_there_is_none(monkeypatch) -> None:
    def maybe(*, experts, base):
        return experts[0] if base is None else base

    method = declare(maybe, needs=mtk.Needs(base="optional"))
    base, *experts = models(3)
    for size in (engine.CHUNK, 5):
        monkeypatch.setattr(engine, "CHUNK", size)
        alone = run(method, experts).tensors["a.weight"]
        assert torch.equal(alone, experts[0]["a.weight"])
        given = run(method, experts, base=base).tensors["a.weight"]
        assert torch.equal(given, base["a.weight"])


def in_place(*, experts):
    return experts[0].add_(1)


def shapeless(*, experts):
    return experts[0].flatten()[:1]


def not_a_tensor(*, experts):
    return 3


def nan(*, experts):
    return experts[0] * float("nan")


def raising(*, experts):
    raise ValueError("boom\nsecond line")


@pytest.mark.parametrize("target", [in_place, shapeless, not_a_tensor, nan, raising])
def test_a_faulty_method_is_named_with_the_tensor(target) -> None:
    with pytest.raises(MethodError, match=r"^m ") as caught:
        run(target, models())
    assert "a.bias" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_result_that_does_not_fit_float16_is_refused() -> None:
    def huge(*, experts):
        return experts[0] * 0 + 1e6

    with pytest.raises(MethodError, match="float16"):
        run(huge, models(2, torch.float16))


def broken(change):
    experts = models(2)
    change(experts[1])
    return experts


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e.pop("a.bias"), "a.bias"),
        (lambda e: e.update(extra=torch.zeros(1)), "extra"),
        (lambda e: e.update({"a.bias": torch.zeros(5)}), "shape"),
        (lambda e: e.update({"a.bias": e["a.bias"].half()}), "dtype"),
        (lambda e: e.update(steps=torch.tensor([1, 2, 4])), "whole numbers"),
        (lambda e: e["a.weight"].view(-1)[3:4].fill_(float("nan")), "NaN"),
        (lambda e: e["a.weight"].view(-1)[3:4].fill_(float("inf")), "infinity"),
    ],
)
def test_models_that_do_not_fit_are_refused(change, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        run(mean, broken(change))
    assert len(str(caught.value).splitlines()) <= 3


def test_only_what_matches_is_merged_and_the_rest_is_the_base() -> None:
    one, two = models()
    base = models(3)[2]
    merged = run(mean, [one, two], base=base, only=["a.*"])
    assert torch.equal(merged.tensors["scalar"], base["scalar"])
    assert not torch.equal(merged.tensors["a.bias"], base["a.bias"])
    for pattern in ("zzz*", "steps"):
        with pytest.raises(UsageError, match="no floating-point tensor"):
            run(mean, [one, two], only=[pattern])


def test_large_element_tensors_are_given_in_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def watch(*, experts, base):
        sizes.append(base.numel())
        return base + sum(e - base for e in experts)

    method = declare(watch, needs=mtk.Needs(base=True))
    base, *experts = models(3)
    whole = run(method, experts, base=base).tensors
    monkeypatch.setattr(engine, "CHUNK", 5)
    sizes.clear()
    sliced = run(method, experts, base=base).tensors
    assert max(sizes) == 5
    assert all(torch.equal(whole[name], sliced[name]) for name in whole)


def test_slices_must_keep_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK", 5)
    with pytest.raises(MethodError, match="element"):
        run(shapeless, models(), only=["a.weight"])


def test_scans_are_added_up_in_order_and_run_only_when_asked() -> None:
    def count(*, experts, summary, mode):
        return {"n": experts[0].numel(), "sum": experts[0].double().sum()}

    def square(*, experts, summary, mode):
        assert summary["n"] == 29
        return {"twice": 2 * experts[0].numel()}

    def merge(*, experts, summary, mode):
        if mode == "none":
            assert "twice" not in summary
        return experts[0] * 0 + summary.get("twice", 0)

    method = declare(
        merge,
        scope="two-pass",
        scans=(mtk.Scan(count), mtk.Scan(square, when={"mode": ("all",)})),
        params=(mtk.Param("mode", "all", choices=("all", "none")),),
    )
    merged = run(method, models())
    assert merged.tensors["scalar"] == 58
    assert merged.report.passes == 3
    assert run(method, models(), params={"mode": "none"}).report.passes == 2


def draw(*, experts, random):
    return experts[0] * random.keep_mask(0, 0.5, experts[0])


def test_draws_depend_on_seed_expert_and_tensor_only() -> None:
    method = declare(
        draw, scope="tensor", stochastic=True, params=(mtk.Param("seed", 0),)
    )
    experts = models()
    everything = run(method, experts).tensors
    alone = [{"a.weight": e["a.weight"]} for e in experts]
    assert torch.equal(run(method, alone).tensors["a.weight"], everything["a.weight"])
    other = run(method, experts, params={"seed": 1}).tensors
    assert not torch.equal(other["a.weight"], everything["a.weight"])
    masks = {"mask.0.a.weight": torch.ones(4, 6, dtype=torch.uint8)}
    given = run(method, alone, masks=masks).tensors["a.weight"]
    assert torch.equal(given, experts[0]["a.weight"])
    with pytest.raises(CheckpointError, match=r"mask\.0\.a\.bias"):
        run(method, experts, masks=masks)


def test_tied_matrices_are_merged_once() -> None:
    calls = []

    def watch(*, experts, info):
        calls.append(info.name)
        return mean(experts=experts)

    experts = [
        dict(e, tied=e["a.weight"].clone(), ones=torch.ones(2, 2)) for e in models()
    ]
    experts = [dict(e, also=torch.ones(2, 2)) for e in experts]
    merged = run(declare(watch, needs=mtk.Needs(info=True), scope="tensor"), experts)
    assert merged.report.tied == {"tied": "a.weight"}
    assert "tied" not in calls
    assert {"ones", "also"} <= set(calls)
    assert torch.equal(merged.tensors["tied"], merged.tensors["a.weight"])


def elect(*, experts, base):
    shared = mean(experts=experts) - base
    return PerTask(
        shared, [{"scale": torch.tensor(float(i))} for i in range(len(experts))]
    )


def decode(*, base, shared, code):
    return base + code["scale"] * shared


PER_TASK = declare(elect, needs=mtk.Needs(base=True), output="per_task", decode=decode)


def test_a_per_task_result_gives_one_model_per_expert() -> None:
    base, *experts = models(3)
    merged = run(PER_TASK, experts, base=base)
    assert torch.equal(merged.task(0)["a.weight"], base["a.weight"])
    want = mean(experts=[e["a.weight"] for e in experts])
    torch.testing.assert_close(merged.task(1)["a.weight"], want)
    assert torch.equal(merged.task(1)["steps"], base["steps"])
    assert merged.added_bytes() == 2 * 4 * 4
    with pytest.raises(UsageError, match="counted from 0"):
        merged.task(2)


@pytest.mark.parametrize(
    "part", [{"a.b": torch.ones(1)}, {"a": torch.tensor([float("nan")])}]
)
def test_codes_have_simple_names_and_finite_numbers(part) -> None:
    def odd(*, experts):
        return PerTask(experts[0], [part for _ in experts])

    method = declare(odd, output="per_task", decode=decode)
    with pytest.raises(MethodError, match="part"):
        run(method, models())


def test_without_a_base_a_task_still_has_the_dtype_of_the_experts(
    tmp_path: Path,
) -> None:
    def keep(*, experts):
        return PerTask(experts[0], [{"d": e - experts[0]} for e in experts])

    def restore(*, shared, code):
        return shared + code["d"]

    method = declare(keep, output="per_task", decode=restore)
    experts = models(2, torch.bfloat16)
    merged = run(method, experts)
    assert torch.equal(merged.task(1)["a.weight"], experts[1]["a.weight"])
    path = tmp_path / "m.safetensors"
    merged.save(path)
    registry = mtk.load([])
    registry.methods.append(Provided(method, None))
    again = mtk.load_merged(path, registry=registry)
    assert torch.equal(again.task(1)["a.weight"], experts[1]["a.weight"])


def test_the_wrong_kind_of_result_is_refused() -> None:
    method = declare(mean, output="per_task", decode=decode)
    with pytest.raises(MethodError, match="per_task"):
        run(method, models())


def test_routing_parts_of_weight_and_bias_meet_at_the_layer() -> None:
    def route_parts(*, experts, info):
        part = {"weight": "left", "bias": "shift"}.get(info.name.rpartition(".")[2])
        return Routed(experts[0], {part: experts[0]} if part else {})

    method = declare(
        route_parts,
        scope="tensor",
        output="routed",
        route=print,
        needs=mtk.Needs(info=True),
    )
    merged = run(method, models())
    assert set(merged.routing) == {"a.weight"}
    assert set(merged.routing["a.weight"]) == {"left", "shift"}


def test_a_routed_result_runs_in_a_model_and_leaves_it_as_it_was(
    tmp_path: Path,
) -> None:
    def shift(*, experts, info, gain):
        parts = {"shift": experts[0].sum(1)} if info.role == "linear" else {}
        return Routed(experts[1], parts)

    def route(*, x, parts, gain):
        return gain * parts["shift"].expand(*x.shape[:-1], -1)

    method = declare(
        shift,
        scope="tensor",
        output="routed",
        route=route,
        needs=mtk.Needs(info=True),
        params=(mtk.Param("gain", 2.0),),
    )
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(3, 2)) for _ in range(2)]
    merged = run(method, [model.state_dict() for model in models])
    x, plain = torch.randn(5, 3), models[1]
    want = plain(x) + 2 * models[0][0].weight.sum(1)
    with merged.routed(plain) as model:
        torch.testing.assert_close(model(x), want)
    assert not torch.allclose(plain(x), want)
    with pytest.raises(UsageError, match="static"):
        run(mean, [model.state_dict() for model in models]).routed(plain)


def test_model_scope_gets_whole_state_dicts_without_integers() -> None:
    def whole(*, experts, base, tasks):
        assert "steps" not in base
        assert tasks == ["t0", "t1"]
        return {name: tensor + 1 for name, tensor in base.items()}

    method = declare(
        whole,
        scope="model",
        needs=mtk.Needs(base=True, data="unlabelled", gradients=True),
    )
    base, *experts = models(3)
    merged = run(method, experts, base=base, tasks=["t0", "t1"])
    assert torch.equal(merged.tensors["a.bias"], base["a.bias"] + 1)
    with pytest.raises(UsageError, match="mtk bench"):
        run(method, experts, base=base)


def test_statistics_arrive_per_expert_and_their_absence_is_reported() -> None:
    def weigh(*, experts, fisher):
        if fisher[0] is None:
            return mean(experts=experts)
        return sum(f * e for f, e in zip(fisher, experts, strict=True))

    method = declare(weigh, needs=mtk.Needs(statistics=("fisher",)))
    experts = models()
    statistics = [{"a.weight": torch.ones(4, 6)}, {"a.weight": torch.zeros(4, 6)}]
    merged = run(method, experts, statistics=statistics)
    assert torch.equal(merged.tensors["a.weight"], experts[0]["a.weight"])
    assert merged.report.without_statistic == {"fisher": ["a.bias", "empty", "scalar"]}
    for wrong in (
        [{"a.weight": torch.ones(6, 4)}] * 2,
        [{"zzz": torch.ones(1)}] * 2,
        [],
    ):
        with pytest.raises(UsageError):
            run(method, experts, statistics=wrong)


def test_the_number_of_experts_and_the_base_are_checked() -> None:
    method = declare(mean, needs=mtk.Needs(base=True, experts=(2, 2)))
    one, two = models()
    with pytest.raises(UsageError, match="takes 2 experts, not 1"):
        run(method, [one], base=two)
    with pytest.raises(UsageError, match="--base"):
        run(method, [one, two])


def test_inputs_are_never_changed(tmp_path: Path) -> None:
    experts = models()
    before = [{name: tensor.clone() for name, tensor in e.items()} for e in experts]
    run(mean, experts, output=tmp_path / "out.safetensors")
    for one, two in zip(experts, before, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
