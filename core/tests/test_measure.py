from __future__ import annotations

import sys

import pytest
import torch

from mtk.measure import Measure

MB = 1 << 20


def test_peak_memory_is_that_of_the_block() -> None:
    with Measure() as large:
        torch.ones(64 * MB // 4).sum()
    assert large.peak_bytes > 48 * MB
    assert large.seconds > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset its peak")
def test_an_earlier_peak_is_forgotten() -> None:
    torch.ones(64 * MB // 4).sum()
    with Measure() as small:
        torch.ones(8 * MB // 4).sum()
    assert 4 * MB < small.peak_bytes < 32 * MB
