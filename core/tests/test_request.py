"""Requests to merge, from arguments and from recipes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtk
from mtk.checkpoint import StateDict
from mtk.errors import CheckpointError, ParameterError, UnknownName, UsageError
from mtk.estimates import expected_bytes
from mtk.loading import Plugin, Provided, Registry
from mtk.merging import execute, prepare
from mtk.recipes import Gradient, Recipe, Rule, Slab, Source
from mtk.request import from_arguments
from mtk.testing._toy import ToyAdapter

if TYPE_CHECKING:
    from pathlib import Path


def mean(*, experts, **_):
    return sum(experts) / len(experts)


def add(*, experts, base, scale):
    return base + scale * sum(expert - base for expert in experts)


def fisher(*, experts, fisher):
    if None in fisher:
        return mean(experts=experts)
    return sum(f * e for f, e in zip(fisher, experts, strict=True)) / sum(fisher)


def codes(*, experts):
    return mtk.results.PerTask(mean(experts=experts), [{} for _ in experts])


def total(*, experts, **_):
    return {"total": sum(float(expert.sum()) for expert in experts)}


def once(*, experts, **_):
    return {"peak": max(float(expert.abs().max()) for expert in experts)}


SCALE = mtk.Param("scale", 0.5, low=0.0, high=10.0)
SCANNED = {"target": mean, "summary": "s", "scope": "two-pass"}
METHODS = (
    mtk.Method(name="mean", target=mean, summary="s", params=(SCALE,)),
    mtk.Method(
        name="add", target=add, summary="s", needs=mtk.Needs(base=True), params=(SCALE,)
    ),
    mtk.Method(
        name="fisher",
        target=fisher,
        summary="s",
        scope="tensor",
        needs=mtk.Needs(statistics=("fisher",)),
    ),
    mtk.Method(name="codes", target=codes, summary="s", output="per_task", decode=mean),
    mtk.Method(
        name="model", target=lambda *, experts: experts[0], summary="s", scope="model"
    ),
    mtk.Method(
        name="scans",
        **SCANNED,
        params=(mtk.Param("how", "one", choices=("one", "two")),),
        scans=(mtk.Scan(total), mtk.Scan(total, when={"how": ("two",)})),
    ),
    mtk.Method(
        name="needed",
        **SCANNED,
        params=(SCALE,),
        scans=(mtk.Scan(total, needed=lambda *, scale: scale > 1),),
    ),
    mtk.Method(
        name="apart", **SCANNED, scans=(mtk.Scan(once, each=True), mtk.Scan(total))
    ),
    mtk.Method(
        name="finished",
        **SCANNED,
        scans=(
            mtk.Scan(once, each=True, finish=lambda *, summary: dict(summary)),
            mtk.Scan(total),
        ),
    ),
)


@pytest.fixture
def registry():
    plugin = Plugin(
        distribution="tests",
        version="0",
        entry_point="tests",
        module="tests",
        seconds=0.0,
        hooks=(),
        imported_torch=True,
    )
    found = Registry()
    found.methods = [Provided(method, plugin) for method in METHODS]
    adapter = mtk.Adapter(name="toy", target=ToyAdapter(), summary="s")
    found.adapters = [Provided(adapter, plugin)]
    return found


def state(seed: int, layers: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"layers.{i}.weight": torch.randn(4, 6, generator=generator)
        for i in range(layers)
    }
    tensors["embed.weight"] = torch.randn(7, 4, generator=generator)
    tensors["norm.weight"] = torch.randn(4, generator=generator)
    return tensors | {"steps": torch.tensor([1, 2, 3])}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, name in enumerate(("base", "a", "b", "c")):
        save_file(state(number), tmp_path / f"{name}.safetensors")
    less = {name: t for name, t in state(4).items() if name != "steps"}
    save_file(less, tmp_path / "less.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(*names: str) -> tuple[Source, ...]:
    return tuple(Source(path=f"{name}.safetensors") for name in names)


def test_paths_state_dicts_and_open_checkpoints_may_be_mixed(files, registry) -> None:
    opened = StateDict(state(2), "b")
    merged = mtk.merge(
        "mean", experts=["a.safetensors", state(3), opened], registry=registry
    )
    expected = (
        state(1)["norm.weight"] + state(3)["norm.weight"] + state(2)["norm.weight"]
    ) / 3
    torch.testing.assert_close(merged.tensors["norm.weight"], expected)
    mixed = mtk.merge(
        "add",
        base=state(0),
        experts=[files / "a.safetensors", "b.safetensors"],
        params={"scale": 1},
        registry=registry,
    )
    one, two, base = (state(n)["layers.1.weight"] for n in (1, 2, 0))
    torch.testing.assert_close(mixed.tensors["layers.1.weight"], one + two - base)


def test_models_in_memory_are_not_mistaken_for_files_of_their_label() -> None:
    memory = [state(0), state(1)]
    request = from_arguments(
        "add", base=memory[0], experts=["base", memory[1], "expert 1"]
    )
    assert request.recipe.base is not None
    base, *experts = [
        request.recipe.base.path,
        *(s.path for s in request.recipe.experts),
    ]
    assert len({base, *experts}) == 4
    assert (experts[0], experts[2]) == ("base", "expert 1")
    assert request.models[base] is memory[0]
    assert request.models[experts[1]] is memory[1]
    assert set(request.models) == {base, experts[1]}


def test_a_recipe_says_everything_itself(files, registry) -> None:
    recipe = Recipe(method="mean", experts=sources("a", "b"))
    merged = mtk.merge(recipe, registry=registry)
    expected = (state(1)["norm.weight"] + state(2)["norm.weight"]) / 2
    torch.testing.assert_close(merged.tensors["norm.weight"], expected)
    for given, word in (
        ({"experts": [state(1)]}, "experts or base"),
        ({"base": state(1)}, "experts or base"),
        ({"params": {"scale": 1}}, "params"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"only": ["*"], "shard_size": 3}, "shard_size"),
        ({"statistics": [state(1)]}, "statistics"),
        ({"masks": {"m": torch.ones(1)}}, "masks"),
    ):
        with pytest.raises(UsageError, match=word):
            mtk.merge(recipe, registry=registry, **given)


def test_the_path_of_a_recipe_is_one_and_other_files_are_not(files, registry) -> None:
    file = files / "merge.toml"
    file.write_text('method = "mean"\nexperts = ["a.safetensors", "b.safetensors"]\n')
    for given in (file, str(file), "merge.toml"):
        merged = mtk.merge(given, registry=registry)
        assert set(merged.tensors) == set(state(0))
    with pytest.raises(UsageError, match="no such recipe"):
        mtk.merge("gone.toml", registry=registry)
    (files / "merge.yml").write_text("")
    with pytest.raises(UsageError, match=r"end in \.toml"):
        mtk.merge(files / "merge.yml", registry=registry)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": "men"}, UnknownName, "did you mean"),
        ({"dtype": "float17"}, UsageError, "dtype is 'float17'; write one of float32"),
        ({"vocabulary": "join"}, UsageError, "vocabulary is 'join'"),
        ({"tokenizer": "base"}, UsageError, "there is none"),
        ({"shard_size": 0}, UsageError, "shard_size is 0"),
        ({"shard_size": "5GB"}, UsageError, "shard_size is '5GB'"),
        ({"only": ("z*",)}, CheckpointError, "no floating-point tensor matches 'z*'"),
        ({"experts": ()}, UsageError, "no experts"),
        ({"experts": sources("gone")}, CheckpointError, "gone.safetensors"),
        ({"method": "add"}, UsageError, "needs the base"),
        ({"method": "fisher"}, UsageError, "needs the statistic 'fisher'"),
        ({"rules": (Rule(match=("n*",), method="add"),)}, UsageError, "needs the base"),
        (
            {"rules": (Rule(match=("n*",), method="fisher"),)},
            UsageError,
            "fisher needs the statistic 'fisher'",
        ),
        (
            {
                "rules": (Rule(match=("n*",), method="codes"),),
                "base": sources("base")[0],
            },
            UsageError,
            "per-task result",
        ),
        ({"params": {"scale": Gradient((0, 11))}}, ParameterError, "<= 10"),
        (
            {"slabs": (Slab(sources=((sources("a")[0], 0, 9),)),)},
            UsageError,
            "layers 0 to 2",
        ),
        (
            {"slabs": (Slab(sources=((sources("a")[0], 0, 1),), method="fisher"),)},
            UsageError,
            "needs the statistic",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    files, registry, changes, error, words: str
) -> None:
    before = set(files.iterdir())
    recipe = Recipe(**{"method": "mean", "experts": sources("a", "b")} | changes)
    with pytest.raises(error) as caught:
        mtk.merge(recipe, registry=registry, output=files / "out")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert set(files.iterdir()) == before


def staged(**changes) -> Recipe:
    inner = {"name": "s", "method": "mean", "experts": sources("a", "b")} | changes
    main = (Source(path="s"), *sources("c"))
    return Recipe(method="mean", experts=main, stages=(Recipe(**inner),))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "f"}, "dtype is 'f'"),
        ({"method": "codes"}, "codes cannot be an earlier stage"),
        ({"method": "fisher"}, "needs the statistic"),
        ({"params": {"scla": 1}}, "did you mean 'scale'"),
        ({"experts": sources("a", "odd")}, "'norm.weight' has shape (4,)"),
    ],
)
def test_stages_are_checked_as_early(files, registry, changes, words: str) -> None:
    save_file(state(1) | {"norm.weight": torch.ones(9)}, files / "odd.safetensors")
    before = set(files.iterdir())
    with pytest.raises(UsageError) as caught:
        mtk.merge(staged(**changes), registry=registry, output="out")
    assert words in str(caught.value)
    assert set(files.iterdir()) == before


def test_an_input_is_not_overwritten_though_it_is_only_in_a_stage(
    files, registry
) -> None:
    with pytest.raises(UsageError, match=r"a\.safetensors"):
        mtk.merge(staged(), registry=registry, output="a.safetensors", overwrite=True)
    assert set(load_file("a.safetensors")) == set(state(1))


def test_outside_the_merge_models_may_differ(files, registry) -> None:
    other = state(1) | {"norm.weight": torch.ones(9), "extra": torch.ones(2)}
    del other["embed.weight"], other["steps"]
    merged = mtk.merge(
        "mean",
        experts=[state(0), other],
        only=["layers.*"],
        registry=registry,
    )
    assert torch.equal(merged.tensors["norm.weight"], state(0)["norm.weight"])
    assert set(merged.tensors) == set(state(0))


BYTES = [
    Recipe(method="mean", experts=sources("a", "b", "c")),
    Recipe(method="mean", experts=sources("a", "b"), base=sources("base")[0]),
    Recipe(method="add", experts=sources("a", "b"), base=sources("base")[0]),
    Recipe(method="mean", experts=sources("a", "b"), only=("layers.*",)),
    Recipe(method="mean", experts=sources("a", "b"), dtype="bfloat16"),
    Recipe(method="mean", experts=sources("a", "less"), only=("layers.*",)),
    Recipe(method="model", experts=sources("a", "less"), only=("layers.*",)),
    Recipe(
        method="mean",
        experts=sources("a", "b"),
        base=sources("base")[0],
        rules=(Rule(match=("layers.1.*", "n*"), method="add"),),
    ),
    Recipe(method="scans", experts=sources("a", "b")),
    Recipe(method="scans", experts=sources("a", "b"), params={"how": "two"}),
    Recipe(method="needed", experts=sources("a", "b")),
    Recipe(method="needed", experts=sources("a", "b"), params={"scale": 2}),
    Recipe(method="apart", experts=sources("a", "b")),
    Recipe(method="finished", experts=sources("a", "b")),
    Recipe(method="model", experts=sources("a", "b")),
    Recipe(
        method="mean",
        slabs=tuple(Slab(sources=((s, 0, 2),)) for s in sources("a", "b")),
    ),
    staged(),
]


@pytest.mark.parametrize("recipe", BYTES)
@pytest.mark.parametrize("file", ["out.safetensors", None])
def test_what_is_read_is_what_was_expected(files, registry, recipe, file) -> None:
    plan = prepare(recipe, registry=registry, output=file)
    read: list[int] = []
    execute(plan, file and files / file, progress=read.append, workers=2)
    assert sum(read) == sum(expected_bytes(part.job) for part in plan.parts)


def test_statistics_are_read_as_well(files, registry) -> None:
    statistics = [
        {n: torch.ones_like(t) for n, t in state(0).items() if "layers" in n}
    ] * 2
    plan = prepare(
        "fisher", experts=[state(1), state(2)], statistics=statistics, registry=registry
    )
    read: list[int] = []
    execute(plan, progress=read.append)
    assert sum(read) == expected_bytes(plan.parts[0].job)


def test_what_a_plan_says(files, registry) -> None:
    plan = prepare(staged(), registry=registry)
    assert list(plan.inputs) == [f"{name}.safetensors" for name in "abc"]
    assert plan.donor == "a.safetensors"
    assert [part.job.method.name for part in plan.stages] == ["mean"]


def test_a_merge_in_memory_costs_next_to_nothing() -> None:
    """The search over a grid of parameters makes thousands of them."""
    models, method = [state(1), state(2)], METHODS[0]
    empty = mtk.load([])
    mtk.merge(method, experts=models, registry=empty)

    def seconds() -> float:
        start = time.perf_counter()
        mtk.merge(method, experts=models, registry=empty, workers=1)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(10)) < 0.05
