"""From recipes to jobs: which method and which parameters each tensor gets."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

import mtk
from mtk.assembly import Opened, parts, result
from mtk.checkpoint import StateDict
from mtk.errors import CheckpointError, ParameterError, UnknownName, UsageError
from mtk.job import mismatches
from mtk.recipes import Choice, Gradient, Recipe, Rule, Slab, Source

LAYERS = 5


def mean(*, experts, **_):
    return sum(experts) / len(experts)


METHODS = {
    method.name: method
    for method in (
        mtk.Method(
            name="mean",
            target=mean,
            summary="s",
            params=(
                mtk.Param("scale", 1.0, low=0.0, high=10.0),
                mtk.Param("rule", "sum", choices=("sum", "max")),
                mtk.Param("weights", None, type="floats"),
                mtk.Param("normalize", True),
                mtk.Param("base_weight", 0.0),
            ),
        ),
        mtk.Method(name="other", target=mean, summary="s", params=(mtk.Param("x", 7),)),
        mtk.Method(
            name="global",
            target=mean,
            summary="s",
            scope="two-pass",
            params=(
                mtk.Param("density", 0.2),
                mtk.Param("scale", 1.0),
                mtk.Param("threshold_scope", "global", choices=("global", "tensor")),
            ),
            scans=(
                mtk.Scan(
                    mean, when={"threshold_scope": ("global",)}, same=("density",)
                ),
            ),
        ),
    )
}


def find(name: str) -> mtk.Method:
    name = name.removeprefix("tests:")
    if name not in METHODS:
        raise UnknownName(f"no method named {name!r}")
    return METHODS[name]


def state(layers: int = LAYERS, fill: float = 0.0) -> dict[str, torch.Tensor]:
    tensors = {
        "embed.weight": torch.full((6, 2), fill),
        "norm.weight": torch.full((2,), fill),
        "head.weight": torch.full((6, 2), fill),
        "steps": torch.tensor([3]),
    }
    for layer in range(layers):
        tensors[f"layers.{layer}.attn.weight"] = torch.full((2, 2), fill + layer)
        tensors[f"layers.{layer}.mlp.weight"] = torch.full((2, 2), fill + layer)
    return tensors


def opened(count: int = 2, base: bool = False, **changes) -> Opened:
    experts = [StateDict(state(**changes), f"e{i}") for i in range(count)]
    return Opened(experts=experts, base=StateDict(state(), "base") if base else None)


def assemble(models: Opened | None = None, **recipe):
    recipe = {"method": "mean", "experts": (Source(path="e"),)} | recipe
    return parts(Recipe(**recipe), find, models or opened())


def given(made, name: str) -> dict:
    """What one tensor is merged with."""
    (part,) = [p for p in made if name in p.names]
    return {"method": part.job.method.name, **part.job.params_of(name)}


def slabs(*ranges, base=None, **changes):
    made = []
    for number, (start, end) in enumerate(ranges, 1):
        slab = Slab(
            sources=((Source(path="e"), start, end),),
            where=f"stack {number}",
            **changes,
        )
        models = Opened(experts=[StateDict(state(fill=100.0 * number), f"m{number}")])
        made.append((slab, models if base is None else base(models)))
    return made


def test_without_rules_there_is_one_job_for_everything() -> None:
    (part,) = assemble(params={"scale": 2})
    assert sorted(part.names) == sorted(state())
    assert part.names == tuple(sorted(part.names))
    assert part.job.params["scale"] == 2.0
    assert part.job.varied == {}


def test_later_rules_win_parameter_by_parameter() -> None:
    made = assemble(
        params={"scale": 2.0},
        rules=(
            Rule(match=("layers.*",), params={"scale": 3.0, "rule": "max"}),
            Rule(match=("*.mlp.*", "head*"), params={"scale": 4.0}),
        ),
    )
    assert len(made) == 1
    picked = {
        name: (given(made, name)["scale"], given(made, name)["rule"])
        for name in ("embed.weight", "layers.1.attn.weight", "layers.1.mlp.weight")
    }
    assert picked == {
        "embed.weight": (2.0, "sum"),
        "layers.1.attn.weight": (3.0, "max"),
        "layers.1.mlp.weight": (4.0, "max"),
    }
    assert given(made, "head.weight")["scale"] == 4.0


def test_another_method_starts_from_its_own_defaults() -> None:
    made = assemble(
        params={"scale": 2.0},
        rules=(
            Rule(match=("*.mlp.*",), params={"rule": "max"}),
            Rule(match=("*.mlp.*",), method="other"),
            Rule(match=("layers.0.*",), method="mean", params={"rule": "max"}),
            Rule(match=("layers.4.*",), method="other", params={"x": 1}),
            Rule(match=("layers.[0-3].attn.*",), params={"scale": 3.0}),
            Rule(match=("layers.1.attn.*",), method="tests:mean"),
        ),
    )
    assert given(made, "layers.1.attn.weight")["scale"] == 3.0
    assert given(made, "layers.1.mlp.weight") == {"method": "other", "x": 7}
    assert given(made, "layers.4.mlp.weight") == {"method": "other", "x": 1}
    # Back to the first method: its parameters in the recipe are not those of the rule.
    again = given(made, "layers.0.mlp.weight")
    assert (again["method"], again["scale"], again["rule"]) == ("mean", 1.0, "max")
    # The same method, by whatever name, keeps what was said before.
    kept = given(made, "layers.0.attn.weight")
    assert (kept["scale"], kept["rule"]) == (3.0, "max")
    assert sorted(name for part in made for name in part.names) == sorted(state())


def test_every_tensor_of_the_result_comes_from_one_job() -> None:
    made = assemble(rules=(Rule(match=("*",), method="other"),))
    assert [part.job.method.name for part in made] == ["other"]
    assert set(result(made)) == set(state())
    made = assemble(rules=(Rule(match=("steps", "norm*"), method="other"),))
    assert {p.job.method.name: len(p.names) for p in made} == {"mean": 13, "other": 1}
    for part in made:
        assert not list(mismatches(part.job))


def test_gradients_run_over_the_layers() -> None:
    made = assemble(params={"scale": Gradient((0.0, 1.0, 3.0))})
    scales = [given(made, f"layers.{i}.mlp.weight")["scale"] for i in range(LAYERS)]
    assert scales == [0.0, 0.5, 1.0, 2.0, 3.0]
    ends = [
        given(made, f"{name}.weight")["scale"] for name in ("embed", "norm", "head")
    ]
    assert ends == [0.0, 3.0, 3.0]


def test_an_embedding_is_at_the_beginning_whatever_its_name() -> None:
    tensors = {"wte.weight": torch.zeros(6, 2), **state()}
    models = Opened(experts=[StateDict(tensors, "e")])
    made = assemble(models, params={"scale": Gradient((0.0, 1.0))})
    assert given(made, "wte.weight")["scale"] == 0.0


def test_choices_take_the_first_pattern_and_may_hold_gradients_and_lists() -> None:
    steep = Gradient((0.0, 4.0))
    made = assemble(
        params={
            "scale": Choice((("*attn*", steep), ("*.4.*", 9.0), ("*", 2.0))),
            "weights": [1.0, Choice((("head*", 3.0), ("*", Gradient((1.0, 2.0)))))],
        }
    )
    attn, mlp, head = (
        given(made, name)
        for name in ("layers.4.attn.weight", "layers.4.mlp.weight", "head.weight")
    )
    assert (attn["scale"], mlp["scale"], head["scale"]) == (4.0, 9.0, 2.0)
    assert attn["weights"] == [1.0, 2.0]
    assert head["weights"] == [1.0, 3.0]


def test_equal_parameters_are_stored_once_and_the_usual_ones_are_the_jobs() -> None:
    (part,) = assemble(rules=(Rule(match=("embed*",), params={"scale": 5.0}),))
    assert set(part.job.varied) == {"embed.weight"}
    assert part.job.params["scale"] == 1.0


@pytest.mark.parametrize(
    ("recipe", "error", "words"),
    [
        ({"params": {"scal": 1}}, ParameterError, "did you mean 'scale'"),
        ({"params": {"scale": 11}}, ParameterError, "<= 10"),
        ({"params": {"scale": float("nan")}}, ParameterError, "scale"),
        ({"params": {"scale": Gradient((0.0, float("inf")))}}, ParameterError, "scale"),
        ({"params": {"scale": Gradient((0.0, 11.0))}}, ParameterError, "<= 10"),
        ({"params": {"scale": "much"}}, ParameterError, "takes a number"),
        ({"params": {"scale": True}}, ParameterError, "takes a number"),
        ({"params": {"rule": "mim"}}, ParameterError, "one of sum, max"),
        ({"params": {"weights": [1.0]}}, ParameterError, "1 numbers for 2 experts"),
        ({"params": {"weights": [1, -1]}}, ParameterError, "sum to 0"),
        (
            {"params": {"weights": [1, 1], "base_weight": -2.0}},
            ParameterError,
            "sum to 0",
        ),
        (
            {"params": {"weights": [1, Gradient((0, -1))]}},
            ParameterError,
            "normalize=false",
        ),
        (
            {"params": {"scale": Choice((("*attn*", 1.0),))}},
            ParameterError,
            "no value for 'embed.weight'",
        ),
        (
            {"params": {"scale": Choice((("*atn*", 1.0), ("*", 1.0)))}},
            UsageError,
            "no tensor fits '*atn*'",
        ),
        (
            {"rules": (Rule(match=("*mpl*",), method="other", where="rule 1"),)},
            UsageError,
            "rule 1: no tensor fits '*mpl*'",
        ),
        (
            {"rules": (Rule(match=("head.wieght",), method="other"),)},
            UsageError,
            "did you mean 'head.weight'",
        ),
        (
            {
                "rules": (
                    Rule(match=("*",), method="meen"),
                    Rule(match=("*",), method="other"),
                )
            },
            UnknownName,
            "'meen'",
        ),
        ({"only": ("head*", "haed*")}, CheckpointError, "matches 'haed*'"),
        ({"only": ("steps",)}, CheckpointError, "no floating-point tensor"),
        (
            {"method": "global", "params": {"density": Gradient((0, 1))}},
            ParameterError,
            "threshold_scope=tensor",
        ),
    ],
)
def test_what_cannot_be_is_refused(recipe, error, words: str) -> None:
    with pytest.raises(error) as caught:
        assemble(**recipe)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_wrong_parameter_of_a_rule_is_said_with_a_tensor() -> None:
    rules = (
        Rule(match=("*mlp*",), method="other"),
        Rule(match=("layers.3.*",), params={"scale": 2.0}),
    )
    with pytest.raises(ParameterError) as caught:
        assemble(rules=rules)
    first = str(caught.value).splitlines()[0]
    assert first == "other has no parameter 'scale' (at 'layers.3.mlp.weight')"


def test_weights_that_sum_to_zero_are_fine_where_nothing_is_divided_by_them() -> None:
    (part,) = assemble(params={"weights": [1, -1], "normalize": False})
    assert part.job.params["weights"] == [1, -1]


def test_what_a_scan_adds_up_must_be_the_same_in_all_tensors() -> None:
    uneven = Rule(match=("*mlp*",), params={"density": 0.5})
    with pytest.raises(ParameterError, match="'density' differs"):
        assemble(method="global", rules=(uneven,))
    local = {"threshold_scope": "tensor"}
    (part,) = assemble(method="global", rules=(uneven,), params=local)
    assert part.job.params_of("layers.0.mlp.weight")["density"] == 0.5
    mixed = Rule(match=("*mlp*",), params=local)
    with pytest.raises(ParameterError, match="'threshold_scope' differs"):
        assemble(method="global", rules=(mixed,))
    # What no scan uses may differ; what another method does is its own affair.
    free = Rule(match=("*mlp*",), params={"scale": 0.5})
    away = Rule(match=("*attn*",), method="other")
    made = assemble(method="global", rules=(free, away))
    assert given(made, "layers.0.mlp.weight")["scale"] == 0.5


def test_scans_of_single_tensors_and_scans_that_never_run_ask_for_nothing() -> None:
    how = mtk.Param("how", "a", choices=("a", "b", "c"))
    METHODS["scanned"] = mtk.Method(
        name="scanned",
        target=mean,
        summary="s",
        scope="two-pass",
        params=(how, mtk.Param("x", 1.0)),
        scans=(
            mtk.Scan(mean, when={"how": ("a",)}, each=True),
            mtk.Scan(mean, when={"how": ("c",)}, same=("x",)),
        ),
    )
    rule = Rule(match=("*mlp*",), params={"how": "b", "x": 2.0})
    made = assemble(method="scanned", rules=(rule,))
    assert given(made, "layers.0.mlp.weight")["how"] == "b"
    for params, odd in (({"how": "c"}, "how"), ({"how": "c", "x": 3.0}, "how")):
        with pytest.raises(ParameterError, match=f"'{odd}' differs"):
            assemble(method="scanned", rules=(rule,), params=params)
    rule = Rule(match=("*mlp*",), params={"x": 2.0})
    with pytest.raises(ParameterError, match="'x' differs"):
        assemble(method="scanned", rules=(rule,), params={"how": "c"})
    del METHODS["scanned"]


def test_only_leaves_the_rest_to_be_copied() -> None:
    (part,) = assemble(only=("*mlp*",), rules=(Rule(match=("*",), method="other"),))
    assert part.job.method.name == "other"
    assert set(part.names) == set(state())
    merged = {n for n in part.names if part.job.merged(part.job.first.info(n))}
    assert merged == {f"layers.{i}.mlp.weight" for i in range(LAYERS)}


def test_stacked_layers_are_counted_on_and_ends_come_from_the_ends() -> None:
    made = parts(
        Recipe(method="mean", slabs=(Slab(sources=()),)),
        find,
        None,
        slabs((0, 3), (1, 2), (3, 5)),
    )
    infos = result(made)
    assert len(infos) == 4 + 2 * 6
    found = {
        name: float(part.job.experts[0].read(name).flatten()[0])
        for part in made
        for name in part.names
        if name != "steps"
    }
    layers = [found[f"layers.{i}.mlp.weight"] for i in range(6)]
    assert layers == [100.0, 101.0, 102.0, 201.0, 303.0, 304.0]
    assert (found["embed.weight"], found["norm.weight"], found["head.weight"]) == (
        100.0,
        300.0,
        300.0,
    )


def test_gradients_run_within_a_slab() -> None:
    made = parts(
        Recipe(method="mean", slabs=(), params={"scale": Gradient((0.0, 1.0))}),
        find,
        None,
        slabs((0, 3), (1, 2), (3, 5)),
    )
    scales = [given(made, f"layers.{i}.attn.weight")["scale"] for i in range(6)]
    assert scales == [0.0, 0.5, 1.0, 0.0, 0.0, 1.0]


def test_params_and_methods_of_slabs_and_rules_by_the_names_of_the_result() -> None:
    first, second = slabs((0, 2), (0, 2))
    second = (
        Slab(sources=second[0].sources, method="other", params={"x": 3}),
        second[1],
    )
    rule = Rule(match=("layers.3.*",), params={"x": 4})
    made = parts(
        Recipe(method="mean", params={"scale": 2.0}, rules=(rule,)),
        find,
        None,
        [first, second],
    )
    assert given(made, "layers.1.mlp.weight")["scale"] == 2.0
    assert given(made, "layers.2.mlp.weight") == {"method": "other", "x": 3}
    assert given(made, "layers.3.mlp.weight") == {"method": "other", "x": 4}


def test_the_base_of_a_slab_is_cut_like_its_first_source_or_by_its_own_range() -> None:
    base = partial(with_base, StateDict(state(fill=1000.0), "base"))
    recipe = Recipe(method="mean")
    (part,) = parts(recipe, find, None, slabs((1, 3), base=base))
    assert part.job.base is not None
    assert float(part.job.base.read("layers.0.mlp.weight")[0, 0]) == 1001.0
    (part,) = parts(recipe, find, None, slabs((1, 3), base=base, base_range=(3, 5)))
    assert part.job.base is not None
    assert float(part.job.base.read("layers.0.mlp.weight")[0, 0]) == 1003.0


def with_base(base, models: Opened) -> Opened:
    return Opened(experts=models.experts, base=base)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (slabs((0, 9)), "has layers 0 to 4; 0 to 8 are asked for"),
        (
            slabs(
                (0, 2),
                base_range=(0, 1),
                base=partial(with_base, StateDict(state(), "b")),
            ),
            "needs 2 layers",
        ),
        (
            [
                (
                    Slab(
                        sources=((Source(path="a"), 0, 2), (Source(path="b"), 0, 1)),
                        where="s",
                    ),
                    opened(),
                )
            ],
            "need as many layers",
        ),
        (
            [
                (
                    Slab(sources=((Source(path="a"), 0, 1),)),
                    Opened(experts=[StateDict({"w": torch.ones(2)}, "flat")]),
                )
            ],
            "one stack of layers; it has none",
        ),
    ],
)
def test_slabs_that_do_not_fit(made, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parts(Recipe(method="mean"), find, None, made)
    assert words in str(caught.value)


def test_nine_thousand_tensors_and_twenty_rules_take_no_time() -> None:
    tensors = {
        f"model.layers.{i}.block.{j}.weight": torch.empty(1, 1)
        for i in range(90)
        for j in range(100)
    }
    models = Opened(experts=[StateDict(tensors, "e0"), StateDict(tensors, "e1")])
    rules = tuple(
        Rule(
            match=(f"*.block.{j}.*", f"*.{j}.block.1?.*"),
            method="other" if j % 2 else "mean",
            params={"x": j} if j % 2 else {"scale": Gradient((0.0, 1.0 + j / 100))},
        )
        for j in range(20)
    )
    best = min(timed(partial(check_all, models, rules)) for _ in range(3))
    assert best < 1.0


def check_all(models: Opened, rules) -> None:
    made = assemble(models, rules=rules)
    assert len(result(made)) == 9000
    assert not [text for part in made for text in mismatches(part.job)]


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
