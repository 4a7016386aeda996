"""Slices, joined tensors and sums of single tensors, against whole tensors at once."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtk
from mtk import engine, merging
from mtk._units import SMALL, Span, Unit, cut, join, whole
from mtk.checkpoint import SafetensorsCheckpoint, StateDict
from mtk.errors import MethodError, UsageError
from mtk.estimates import expected_bytes
from mtk.job import Job
from mtk.randomness import Random

# What the calls below saw: (function, entries).
SEEN: list[tuple[str, int]] = []


def scan_total(*, experts, summary, **_):
    SEEN.append(("total", experts[0].numel()))
    assert "largest" not in summary
    return {"total": experts[0].double().sum()}


def finish_total(*, summary, factor, **_):
    return {"mean": float(summary["total"]) * factor}


def scan_own(*, experts, summary, **_):
    SEEN.append(("own", experts[0].numel()))
    assert "mean" in summary
    return {"own": experts[0].double().sum()}


def finish_own(*, summary, **_):
    return {"mine": float(summary["own"])}


def scan_late(*, experts, summary, **_):
    SEEN.append(("late", experts[0].numel()))
    return {"late": summary["mine"] * experts[0].double().sum()}


def needed(*, factor, **_):
    return factor != 0


def merge(*, experts, summary, factor):
    SEEN.append(("merge", experts[0].numel()))
    late = float(summary["late"]) if factor else 0.0
    shift = summary.get("mean", 0.0) + summary.get("mine", 0.0) + late
    return (experts[0] + experts[1]) / 2 + shift * 1e-3


METHOD = mtk.Method(
    name="m",
    target=merge,
    summary="s",
    scope="two-pass",
    params=(mtk.Param("factor", 2.0),),
    scans=(
        mtk.Scan(scan_total, slices="model", finish=finish_total, needed=needed),
        mtk.Scan(
            scan_own, slices="tensor", each=True, finish=finish_own, needed=needed
        ),
        mtk.Scan(scan_late, slices="tensor", needed=needed),
    ),
)


@pytest.fixture
def files(tmp_path):
    draw = torch.Generator().manual_seed(1)
    shapes = {"a": (3, 4), "b": (2,), "c": (7, 11), "d": (), "e": (0, 2), "f": (40,)}
    paths = []
    for index in range(2):
        paths.append(tmp_path / f"e{index}.safetensors")
        state = {
            name: torch.randn(shape, generator=draw).bfloat16()
            for name, shape in shapes.items()
        }
        save_file(state | {"steps": torch.arange(9)}, paths[-1])
    return paths


def reference(files, factor):
    """Whole tensors, one after the other."""
    one, two = ({n: t.double() for n, t in load_file(f).items()} for f in files)
    del one["steps"]
    mean = float(sum(t.sum() for t in one.values())) * factor
    mine = {name: float(t.sum()) for name, t in one.items()}
    late = sum(mine[name] * float(t.sum()) for name, t in one.items())
    return {
        name: t
        if name == "steps"
        else (one[name] + two[name]) / 2
        + (mean + mine[name] + late if factor else 0.0) * 1e-3
        for name, t in load_file(files[0]).items()
    }


def opened(files):
    return [SafetensorsCheckpoint([f], f.name) for f in files]


def run(experts, target=None, *, factor=2.0, **options):
    SEEN.clear()
    job = merging.prepare(METHOD, experts=experts, params={"factor": factor})
    return merging.execute(job, target, **options)


def prepared(experts, **changes):
    params = {"factor": 2.0}
    return Job(method=METHOD, experts=experts, base=None, params=params, **changes)


@pytest.mark.parametrize("size", [5, 1 << 16])
@pytest.mark.parametrize("kind", ["files", "memory"])
@pytest.mark.parametrize("factor", [2.0, 0.0])
def test_against_whole_tensors(size, kind, factor, files, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", size)
    monkeypatch.setattr(engine, "UNIT", 2 * size)
    experts = opened(files) if kind == "files" else [load_file(f) for f in files]
    want = reference(files, factor)
    for workers in (1, 3):
        target = tmp_path / f"{workers}.safetensors"
        run(experts, target, factor=factor, workers=workers)
        kept = run(experts, factor=factor, workers=workers).tensors
        for name, tensor in load_file(target).items():
            torch.testing.assert_close(
                tensor.double(), want[name].double(), rtol=0.01, atol=1e-3
            )
            assert torch.equal(tensor, kept[name])
    ones = [(tmp_path / f"{n}.safetensors").read_bytes() for n in (1, 3)]
    assert ones[0] == ones[1]
    most = {what: max(n for w, n in SEEN if w == what) for what, _ in SEEN}
    names = {"merge"} if factor == 0 else {"total", "own", "late", "merge"}
    assert set(most) == names
    assert most["merge"] <= size
    if factor:
        assert most["total"] <= max(size * engine.SCANNED, SMALL)


def test_small_tensors_are_joined_and_finished_sums_made_once(files):
    merged = run(opened(files))
    counts = {what: sum(w == what for w, _ in SEEN) for what, _ in SEEN}
    assert counts == {"total": 1, "own": 6, "late": 6, "merge": 6}
    assert merged.report.passes == 4
    assert run(opened(files), factor=0.0).report.passes == 1


@pytest.mark.parametrize("factor", [2.0, 0.0])
def test_progress_counts_what_was_announced(factor, files, tmp_path):
    counts = []
    target = tmp_path / "o.safetensors"
    run(opened(files), target, factor=factor, progress=counts.append, workers=3)
    job = prepared(opened(files))
    job.params = {"factor": factor}
    assert sum(counts) == expected_bytes(job)
    assert min(counts) >= 0


def test_slices_of_a_two_pass_method_must_keep_their_size(files, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 5)

    def short(*, experts, **_):
        return experts[0][:1]

    method = mtk.Method(
        name="m",
        target=short,
        summary="s",
        scope="two-pass",
        scans=(mtk.Scan(lambda **_: {}, slices="tensor"),),
    )
    with pytest.raises(MethodError, match="slices"):
        mtk.merge(method, experts=opened(files), registry=mtk.load([]))


def test_a_finish_that_fails_is_named(files):
    def fail(**_):
        raise ValueError("boom")

    scan = mtk.Scan(scan_total, finish=fail)
    method = mtk.Method(
        name="m", target=merge, summary="s", scope="two-pass", scans=(scan,)
    )
    with pytest.raises(MethodError, match="m failed: ValueError: boom"):
        mtk.merge(method, experts=opened(files), registry=mtk.load([]))


def test_units():
    sizes = {"a": 3, "b": 4, "c": SMALL + 1, "d": 5, "e": 6}
    source = StateDict({n: torch.zeros(s) for n, s in sizes.items()}, "s")
    job = prepared([source])
    names = list(sizes)
    spans = {name: Span(name, 0, size) for name, size in sizes.items()}
    assert join(job, names, 8) == [
        Unit((spans["a"], spans["b"])),
        Unit((spans["c"],)),
        Unit((spans["d"],)),
        Unit((spans["e"],)),
    ]
    varied = {"b": {"factor": 1.0}}
    apart = join(prepared([source], varied=varied), names, 1000)
    assert [len(unit.spans) for unit in apart] == [1, 1, 1, 2]
    assert join(job, [], 8) == []
    pieces = cut([whole(job, "d"), whole(job, "c")], lambda unit: unit.name == "d", 2)
    assert [(s.start, s.end) for unit in pieces for s in unit.spans] == [
        (0, 2), (2, 4), (4, 5), (0, SMALL + 1)
    ]  # fmt: skip


def test_masks_go_on_where_the_slice_before_ended():
    like = torch.zeros(1000)
    whole = Random(3, "w").keep_mask(1, 0.3, like)
    part = Random(3, "w", entries=1000)
    for starts in ([0, 10, 500], [500, 10], [10, 10]):
        for start, after in zip(starts, [*starts[1:], 1000], strict=True):
            part.at(start)
            end = after if after > start else start + 7
            got = part.keep_mask(1, 0.3, like[start:end])
            assert torch.equal(got, whole[start:end])
    given = {"mask.0.w": whole.view(10, 100)}
    part = Random(3, "w", given, entries=1000)
    part.at(30)
    assert torch.equal(part.keep_mask(0, 0.3, like[30:40]), whole[30:40])
    with pytest.raises(UsageError, match=r"mask\.1\.w"):
        part.keep_mask(1, 0.3, like[30:40])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.3, 1.0])
def test_drop_keeps_what_the_mask_keeps(dtype, density):
    values = torch.randn(5, 999, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = Random(3, "w").keep_mask(0, density, values)
    dropped = Random(3, "w").drop(0, density, values)
    assert torch.equal(dropped, torch.where(mask, values, 0.0))


def test_one_bad_number_among_joined_tensors_is_named(files):
    state = load_file(files[1])
    state["d"] = torch.tensor(float("nan")).bfloat16()
    save_file(state, files[1])
    with pytest.raises(UsageError, match="'d' contains NaN"):
        run(opened(files))


def test_joined_tensors_of_unlike_dtypes(files, tmp_path):
    """A result of a chosen dtype takes experts whose dtypes differ."""
    state = load_file(files[1])
    mixed = state | {"a": state["a"].float(), "c": state["c"].half()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    plain = prepared(opened(files), dtype="float32")
    other = prepared(
        opened([files[0], tmp_path / "mixed.safetensors"]), dtype="float32"
    )
    got, want = (dict(engine.run(job, job.first.names())) for job in (other, plain))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-3)
