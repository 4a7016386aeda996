"""The estimate of memory is above what is measured, and does not grow with the model."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import mtk
from mtk import engine
from mtk.checkpoint import SafetensorsCheckpoint, StateDict
from mtk.job import Job
from mtk.measure import Measure
from mtk.memory import expected_memory
from mtk.writing import layout, open_output


def mean(*, experts):
    return sum(experts) / len(experts)


def count(*, experts, **_):
    return {"counts": torch.bincount(experts[0].abs().view(torch.int32) >> 15)[:1]}


def shifted(*, experts, summary):
    return mean(experts=experts) + 0 * float(summary["counts"][0])


METHODS = {
    "element": mtk.Method(name="m", target=mean, summary="s"),
    "tensor": mtk.Method(name="m", target=mean, summary="s", scope="tensor"),
    "two-pass": mtk.Method(
        name="m",
        target=shifted,
        summary="s",
        scope="two-pass",
        scans=(mtk.Scan(count, slices="model"),),
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    state = {f"{i}.weight": torch.zeros(2_000_000).bfloat16() + i for i in range(6)}
    for name in "abc":
        save_file(state, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in "abc"]


def job_of(method, files):
    opened = [SafetensorsCheckpoint([file], file.name) for file in files]
    return Job(method=method, experts=opened, base=None, params={})


@pytest.mark.parametrize("name", METHODS)
def test_measured_memory_is_below_the_estimate(name, files, tmp_path):
    job = job_of(METHODS[name], files)
    expected = expected_memory(job, 2)
    infos = layout(job.first.info(n) for n in job.first.names())
    with Measure() as measured, open_output(tmp_path / "o", infos, {}) as output:
        engine.write(job, [info.name for info in infos], output, 2)
    assert measured.peak_bytes <= expected < 1e9


@pytest.mark.parametrize("name", ["element", "two-pass"])
def test_slices_do_not_grow_with_the_model(name):
    # Shapes only: a meta tensor has no numbers.
    sizes = []
    for count in (1, 40):
        state = {
            f"{i}.weight": torch.empty(count * 1000, 1000, device="meta")
            for i in range(3)
        }
        source = StateDict(state, "s")
        source.part = None  # as one that can be read in part
        job = Job(method=METHODS[name], experts=[source], base=None, params={})
        sizes.append(expected_memory(job, 2))
    assert sizes[0] == sizes[1]


def test_what_makes_it_larger(files):
    plain = expected_memory(job_of(METHODS["element"], files), 1)
    assert expected_memory(job_of(METHODS["tensor"], files), 1) > plain
    assert expected_memory(job_of(METHODS["element"], files), 4) > plain
    assert expected_memory(job_of(METHODS["element"], files[:2]), 1) < plain
    views = job_of(METHODS["element"], files)
    views.experts = [
        StateDict({n: e.read(n) for n in e.names()}, "view") for e in views.experts
    ]
    assert expected_memory(views, 1) > plain
