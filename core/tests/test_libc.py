"""Room on the disk is looked for beforehand, and nothing is taken that is not there."""

from __future__ import annotations

import os

import pytest
import torch

from mtk._libc import keep_freed_memory, release_freed_memory, reserve, start_writing
from mtk.declare import TensorInfo
from mtk.errors import UsageError
from mtk.writing import open_output


def test_reserving_takes_what_is_free_and_no_more(tmp_path):
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert reserve(descriptor, 0)
        assert reserve(descriptor, 12_345)
        assert path.stat().st_size in (0, 12_345)  # 0 where it cannot be done
        os.pwrite(descriptor, b"x", 100)
        start_writing(descriptor, 0, 101)
        size = path.stat().st_size
        assert not reserve(descriptor, 1 << 60)
        assert path.stat().st_size == size
    finally:
        os.close(descriptor)


def test_a_result_that_does_not_fit_is_refused_at_once(tmp_path):
    info = TensorInfo(name="a", shape=(1 << 50,), dtype="float32")
    with (
        pytest.raises(UsageError, match="GB") as caught,
        open_output(tmp_path / "o.safetensors", [info], {}),
    ):
        raise AssertionError
    assert len(str(caught.value).splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


def test_memory_settings_do_no_harm():
    keep_freed_memory()
    tensors = [torch.ones(1 << 20) for _ in range(5)]
    del tensors[::2]
    release_freed_memory()
    assert all(float(tensor.sum()) == 1 << 20 for tensor in tensors)
