"""Merges as inputs of merges: the same numbers as through files, tensor by tensor."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import mtk
from mtk.assembly import Opened, parts
from mtk.checkpoint import StateDict
from mtk.computed import Computed
from mtk.errors import CheckpointError, UsageError
from mtk.recipes import Recipe, Rule

# More than one slice of the engine.
LARGE = (300, 1001)


def mean(*, experts, **_):
    return sum(experts) / len(experts)


def half(*, experts, base, scale):
    return base + scale * sum(expert - base for expert in experts)


def whole(*, experts):
    """Not element-wise: slices of a tensor would give something else."""
    assert experts[0].shape in (LARGE, (5,))
    return sum(experts) - experts[0].mean()


def total(*, experts, **_):
    return {"total": sum(float(expert.double().sum()) for expert in experts)}


def shifted(*, experts, summary):
    return experts[0] + summary["total"]


ELEMENT = mtk.Method(name="mean", target=mean, summary="s")
METHODS = {
    method.name: method
    for method in (
        ELEMENT,
        mtk.Method(
            name="half",
            target=half,
            summary="s",
            needs=mtk.Needs(base=True),
            params=(mtk.Param("scale", 0.5),),
        ),
        mtk.Method(name="whole", target=whole, summary="s", scope="tensor"),
        mtk.Method(
            name="shifted",
            target=shifted,
            summary="s",
            scope="two-pass",
            scans=(mtk.Scan(total),),
        ),
        mtk.Method(
            name="codes", target=mean, summary="s", output="per_task", decode=mean
        ),
        mtk.Method(name="model", target=mean, summary="s", scope="model"),
    )
}


def states(count: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "large": torch.randn(LARGE, generator=generator).to(dtype),
            "small": torch.randn(5, generator=generator).to(dtype),
            "steps": torch.tensor([1, 2]),
        }
        for _ in range(count)
    ]


class Counting(StateDict):
    """Counts how often each tensor is read."""

    def __init__(self, tensors, label: str) -> None:
        super().__init__(tensors, label)
        self.reads: dict[str, int] = {}

    def read(self, name: str) -> torch.Tensor:
        self.reads[name] = self.reads.get(name, 0) + 1
        return super().read(name)


def stage(method: str, experts, base=None, **recipe) -> Computed:
    opened = Opened(
        experts=[
            StateDict(e, f"e{i}") if isinstance(e, dict) else e
            for i, e in enumerate(experts)
        ],
        base=None if base is None else StateDict(base, "base"),
    )
    made = parts(Recipe(method=method, **recipe), METHODS.__getitem__, opened)
    return Computed(made, "stage")


def merge(method: str, experts, base=None, **changes) -> dict[str, torch.Tensor]:
    """The whole result in memory, as files between two merges would hold it."""
    given = {"experts": experts, "base": base, "registry": mtk.load([]), **changes}
    return mtk.merge(METHODS[method], **given).tensors


def same(one, two) -> None:
    assert set(one) == set(two)
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype
        assert torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("method", ["mean", "whole", "shifted", "half"])
def test_reading_gives_what_a_merge_gives(method: str) -> None:
    experts = states(2)
    base = states(1, seed=1)[0] if method == "half" else None
    computed, expected = stage(method, experts, base), merge(method, experts, base)
    same({name: computed.read(name) for name in computed.names()}, expected)
    for name, tensor in expected.items():
        info = computed.info(name)
        assert (info.shape, info.dtype) == (
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
        )
        flat = tensor.flatten()
        for start, end in ((0, len(flat)), (1, 3), (len(flat) - 2, len(flat))):
            assert torch.equal(computed.part(name, start, end), flat[start:end])
    middle = expected["large"].flatten()[70_000:200_001]
    assert torch.equal(computed.part("large", 70_000, 200_001), middle)


@pytest.mark.parametrize("first", ["mean", "whole", "shifted"])
@pytest.mark.parametrize("second", ["mean", "whole", "shifted", "half"])
@pytest.mark.parametrize("workers", [1, 3])
def test_two_stages_are_two_merges_one_after_the_other(
    first: str, second: str, workers: int
) -> None:
    """Bit for bit: the first result is rounded as if it had been written."""
    one, two, three = states(3)
    base = states(1, seed=1)[0] if second == "half" else None
    expected = merge(second, [merge(first, [one, two]), three], base)
    computed = stage(first, [one, two])
    same(merge(second, [computed, three], base, workers=workers), expected)


def test_float32_between_the_stages_is_asked_for_with_a_dtype() -> None:
    one, two, three = states(3)
    computed = stage("mean", [one, two], dtype="float32")
    found = merge("mean", [computed, three], dtype="bfloat16")["large"]
    exact = ((one["large"].float() + two["large"].float()) / 2 + three["large"]) / 2
    assert torch.equal(found, exact.bfloat16())
    rounded = merge("mean", [stage("mean", [one, two]), three])["large"]
    assert not torch.equal(found, rounded)


def test_a_stage_of_several_methods_and_a_stage_of_stages() -> None:
    one, two, three = states(3)
    rules = (Rule(match=("small",), method="whole"),)
    mixed = stage("mean", [one, two], rules=rules)
    expected = merge("mean", [one, two]) | {
        "small": merge("whole", [one, two])["small"]
    }
    same({name: mixed.read(name) for name in mixed.names()}, expected)
    outer = stage("shifted", [mixed, three])
    same(
        merge("mean", [outer, mixed]),
        merge("mean", [merge("shifted", [expected, three]), expected]),
    )


def test_what_cannot_be_read_in_slices_is_made_once_for_all_slices() -> None:
    """Else the work would grow with the square of a tensor's size."""
    source = Counting(states(1)[0], "e0")
    computed = stage("whole", [source, states(1, seed=2)[0]])
    before = dict(source.reads)
    size = LARGE[0] * LARGE[1]
    step = 10_000
    for start in range(0, size, step):
        computed.part("large", start, min(start + step, size))
    assert source.reads["large"] - before.get("large", 0) <= 2


def test_scans_of_a_stage_run_once() -> None:
    calls = []

    def counted(**given):
        calls.append(1)
        return total(**given)

    method = mtk.Method(
        name="c",
        target=shifted,
        summary="s",
        scope="two-pass",
        scans=(mtk.Scan(counted),),
    )
    opened = Opened(experts=[StateDict(state, "e") for state in states(2)])
    computed = Computed(
        parts(Recipe(method="c"), {"c": method}.__getitem__, opened), "s"
    )
    assert not calls
    for _ in range(3):
        computed.read("large")
    assert len(calls) == 2  # of two floating-point tensors


@pytest.mark.parametrize("method", ["codes", "model"])
def test_only_one_checkpoint_made_tensor_by_tensor_can_be_a_stage(method: str) -> None:
    with pytest.raises(UsageError, match=f"stage: {method} cannot be an earlier stage"):
        stage(method, states(2))


def test_errors_inside_a_stage_reach_the_user() -> None:
    broken = states(1)[0] | {"small": torch.full((5,), torch.nan).bfloat16()}
    computed = stage("mean", [broken, states(1)[0]])
    with pytest.raises(CheckpointError, match="e0: 'small' contains NaN"):
        merge("mean", [computed, states(1)[0]])


def test_tied_tensors_stay_equal_through_a_stage() -> None:
    tied = [state | {"twin": state["large"].clone()} for state in states(2)]
    computed = stage("shifted", tied)
    assert torch.equal(computed.read("twin"), computed.read("large"))
    found = partial(computed.part, start=5, end=9)
    assert torch.equal(found("twin"), found("large"))
    merged = merge("mean", [computed, tied[0]])
    assert torch.equal(merged["twin"], merged["large"])
