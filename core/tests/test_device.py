"""The way to a device and back, and how wrong devices are refused."""

from __future__ import annotations

import pytest
import torch

import mtk
from mtk import engine
from mtk._device import Lane, find_device, move
from mtk.errors import UsageError

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def mean(*, experts):
    return sum(experts) / len(experts)


def count(*, experts, **_):
    return {"sum": experts[0].double().sum()}


def shift(*, experts, summary):
    return mean(experts=experts) + summary["sum"].float()


METHODS = [
    mtk.Method(name="m", target=mean, summary="s"),
    mtk.Method(name="m", target=mean, summary="s", scope="tensor"),
    mtk.Method(
        name="m",
        target=shift,
        summary="s",
        scope="two-pass",
        scans=(mtk.Scan(count, slices="model"),),
    ),
]


def models(dtype):
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "a": torch.randn(30, 7, generator=draw).to(dtype),
            "b": torch.randn(5, generator=draw).to(dtype),
            "steps": torch.arange(4),
        }
        for _ in range(3)
    ]


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99", "nonsense device"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(name):
    with pytest.raises(UsageError) as caught:
        mtk.merge(METHODS[0], experts=models(torch.float32), device=name)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none():
    with pytest.raises(UsageError, match="no CUDA device"):
        find_device("cuda")


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.scope)
@pytest.mark.parametrize("size", [1 << 16, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_staging_changes_nothing(method, size, dtype, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", size)
    plain = mtk.merge(method, experts=models(dtype)).tensors
    monkeypatch.setattr(engine, "Lane", lambda device: Lane(device, staged=True))
    staged = mtk.merge(method, experts=models(dtype)).tensors
    assert all(torch.equal(plain[name], staged[name]) for name in plain)


def test_what_goes_up_is_a_copy_and_memory_is_used_again():
    lane = Lane(torch.device("cpu"), staged=True)
    given = torch.arange(6.0).view(2, 3)
    up = lane.up(given, "key")
    assert torch.equal(up, given)
    assert up.data_ptr() != given.data_ptr()
    down = lane.down(up)
    assert torch.equal(down, given)
    first = lane.buffer("x", 5, torch.int32)
    assert lane.buffer("x", 3, torch.int32).data_ptr() == first.data_ptr()
    assert lane.buffer("y", 3, torch.int32).data_ptr() != first.data_ptr()


def test_move():
    value = {"a": torch.ones(2), "b": [torch.ones(1), 3], "c": "x"}
    moved = move(value, torch.device("meta"))
    assert moved["a"].device.type == moved["b"][0].device.type == "meta"
    assert moved["b"][1:] == [3]
    assert moved["c"] == "x"


@CUDA
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.scope)
@pytest.mark.parametrize("size", [1 << 16, 8])
def test_cuda_agrees_with_the_cpu(method, size, monkeypatch):
    monkeypatch.setattr(engine, "GPU_CHUNK", size)
    want = mtk.merge(method, experts=models(torch.bfloat16)).tensors
    got = mtk.merge(method, experts=models(torch.bfloat16), device="cuda").tensors
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-2, atol=1e-5)
