"""Threads change neither results nor errors, and files appear whole or not at all."""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtk
from mtk import engine, merging
from mtk._checks import finite
from mtk.checkpoint import SafetensorsCheckpoint
from mtk.errors import CheckpointError, MethodError
from mtk.pipeline import AHEAD, default_workers, ordered


def mean(*, experts):
    return sum(experts) / len(experts)


def total(*, experts, **_):
    return {"sum": sum(expert.double().sum() for expert in experts)}


def shift(*, experts, summary):
    return mean(experts=experts) + float(summary["sum"]) * 1e-6


def declare(**changes):
    return mtk.Method(**{"name": "m", "target": mean, "summary": "s"} | changes)


METHODS = {
    "element": declare(),
    "tensor": declare(scope="tensor"),
    "two-pass": declare(target=shift, scope="two-pass", scans=(mtk.Scan(total),)),
}


@pytest.fixture
def files(tmp_path):
    draw = torch.Generator().manual_seed(1)
    paths = []
    for index in range(3):
        state = {
            f"{i}.weight": torch.randn(7, i + 1, generator=draw).bfloat16()
            for i in range(20)
        }
        state["tied"] = state["9.weight"].clone()
        state["empty"] = torch.zeros(0, 3)
        state["wide"] = torch.randn(5, generator=draw, dtype=torch.float64)
        state["steps"] = torch.arange(30)
        paths.append(tmp_path / f"e{index}.safetensors")
        save_file(state, paths[-1])
    return paths


def write(method, files, target, workers):
    job = merging.prepare(
        method,
        experts=[SafetensorsCheckpoint([f], f.name) for f in files],
        output=target,
    )
    merging.execute(job, target, workers=workers)
    return target.read_bytes()


def reference(method, files):
    """The plain way: whole tensors, one after the other, in memory."""
    models = [load_file(file) for file in files]
    merged = {}
    sums = {"sum": 0.0}
    names = [name for name in sorted(models[0]) if name not in ("steps", "tied")]
    given = {
        n: [m[n].to(torch.float64 if n == "wide" else torch.float32) for m in models]
        for n in names
    }
    for name in names:
        sums["sum"] += float(total(experts=given[name])["sum"])
    for name in names:
        value = mean(experts=given[name])
        if method.scope == "two-pass":
            value = value + sums["sum"] * 1e-6
        merged[name] = value.to(models[0][name].dtype)
    return merged | {"steps": models[0]["steps"], "tied": merged["9.weight"]}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1 << 16, 5])
def test_a_file_has_the_same_bytes_for_any_workers(
    name, size, files, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, "CHUNK", size)
    monkeypatch.setattr(engine, "UNIT", 2 * size)
    written = [
        write(METHODS[name], files, tmp_path / f"{workers}.safetensors", workers)
        for workers in (1, 2, 5)
    ]
    assert len(set(written)) == 1
    got, want = load_file(tmp_path / "2.safetensors"), reference(METHODS[name], files)
    assert set(got) == set(want)
    for key, tensor in want.items():
        assert got[key].dtype == tensor.dtype
        assert torch.equal(got[key], tensor), key


@pytest.mark.parametrize("workers", [1, 4])
def test_an_error_leaves_no_file(workers, files, tmp_path):
    def fail(*, experts):
        raise ValueError("boom")

    before = sorted(tmp_path.iterdir())
    with pytest.raises(MethodError, match="boom") as caught:
        write(declare(target=fail), files, tmp_path / "o.safetensors", workers)
    assert "'wide'" in str(caught.value)  # the first in the order of the file
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_changes_is_refused(files):
    checkpoint = SafetensorsCheckpoint(files[:1], "e")
    assert torch.equal(checkpoint.part("steps", 3, 7), torch.arange(3, 7))
    with files[0].open("ab") as handle:
        handle.write(b"x")
    with pytest.raises(CheckpointError, match="changed"):
        checkpoint.part("steps", 0, 1)


def test_order_and_threads():
    threads = torch.get_num_threads()
    seen = set()

    def work(number):
        seen.add(
            (
                threading.current_thread() is threading.main_thread(),
                torch.get_num_threads(),
            )
        )
        return number * number

    assert list(ordered(range(3 * AHEAD), work, 3)) == [n * n for n in range(3 * AHEAD)]
    assert seen == {(False, 1)}
    assert torch.get_num_threads() == threads
    assert 1 <= default_workers() <= 4


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16]
)
def test_finite_is_exact(dtype):
    most = torch.finfo(dtype).max
    assert finite(torch.full((1000,), most, dtype=dtype))  # the sum overflows
    assert finite(torch.zeros(0, dtype=dtype))
    assert finite(torch.ones(3, dtype=torch.int64))
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not finite(torch.tensor([1.0, bad, most], dtype=dtype))
    assert not finite(torch.tensor([float("inf"), -float("inf")], dtype=dtype))
