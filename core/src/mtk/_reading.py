"""Reading what a method gets: spans or whole tensors, in the dtype of computation.

Each thread reads into memory of its own and uses it again: fresh memory costs more than
filling it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from mtk._checks import finite
from mtk._units import Span
from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mtk._device import Lane
    from mtk.adapters import Checkpoint

# Entries of a whole tensor that are read and converted in one go: they stay in the
# second-level cache.
PIECE = 1 << 16


class Meter:
    """Tells how many bytes of inputs were read, one thread at a time."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress, self._lock = progress, threading.Lock()

    def add(self, count: int) -> None:
        """Pass a count on."""
        if self._progress is not None:
            with self._lock:
                self._progress(count)


class Reader(threading.local):
    """What one thread reads of the sources of a job.

    Args:
        lane: the way to the device, and its memory.
        meter: counts what is read.
        check: refuse NaN and infinity; off where every tensor was checked before.
        fresh: give whole tensors in memory of their own, which a result may keep.
    """

    def __init__(
        self, lane: Lane, meter: Meter, *, check: bool = True, fresh: bool = False
    ) -> None:
        self._lane, self._meter, self._check, self._fresh = lane, meter, check, fresh
        self._last: dict[int, tuple[str, Tensor]] = {}

    def flat(self, source: Checkpoint, spans: Sequence[Span]) -> Tensor:
        """Numbers of one or several tensors, end to end; valid until the next call."""
        if len(spans) == 1:
            return self._numbers(source, spans[0])
        kinds = {source.info(span.name).dtype for span in spans}
        if len(kinds) > 1:  # the first checkpoint's are alike, this one's are not
            return torch.cat([self._numbers(source, span).clone() for span in spans])
        dtype: torch.dtype = getattr(torch, kinds.pop())
        sizes = [span.end - span.start for span in spans]
        room = self._lane.buffer((id(source), "joined"), sum(sizes), dtype)
        for span, part in zip(spans, room.split(sizes), strict=True):
            if hasattr(source, "fill"):
                source.fill(span.name, span.start, part)
            else:
                part.copy_(self.raw(source, span, count=False))
        self._meter.add(room.numel() * dtype.itemsize)
        numbers = self._widened(source, room)
        if self._check and not finite(numbers):
            for span in spans:
                self._numbers(source, span)  # says which
        return numbers

    def whole(self, source: Checkpoint, name: str) -> Tensor:
        """A whole tensor, in its shape."""
        info = source.info(name)
        size = torch.Size(info.shape).numel()
        span = Span(name, 0, size)
        if size <= PIECE or not hasattr(source, "part"):
            numbers = self._numbers(source, span)
            return (numbers.clone() if self._fresh else numbers).view(info.shape)
        wide = compute_dtype(getattr(torch, info.dtype))
        key = (id(source), "whole")
        tensor = (
            torch.empty(size, dtype=wide)
            if self._fresh
            else self._room(key, size, wide)
        )
        for step in span.steps(PIECE):
            tensor[step.start : step.end] = self._numbers(source, step)
        return tensor.view(info.shape)

    def raw(self, source: Checkpoint, span: Span, *, count: bool = True) -> Tensor:
        """A span as it is stored; valid until the next call."""
        info = source.info(span.name)
        dtype: torch.dtype = getattr(torch, info.dtype)
        size = span.end - span.start
        if count:
            self._meter.add(size * dtype.itemsize)
        if hasattr(source, "fill"):
            room = self._lane.buffer((id(source), "raw"), size, dtype)
            source.fill(span.name, span.start, room)
            return room
        if hasattr(source, "part"):
            part: Tensor = source.part(span.name, span.start, span.end)
            return part
        name, flat = self._last.get(id(source), ("", None))
        if name != span.name or flat is None:
            flat = source.read(span.name).flatten()
            self._last[id(source)] = span.name, flat
        if span.end == flat.numel():
            del self._last[id(source)]
        return flat[span.start : span.end]

    def _numbers(self, source: Checkpoint, span: Span) -> Tensor:
        """A span in the dtype of computation, on the device."""
        numbers = self._widened(source, self.raw(source, span))
        if self._check and not finite(numbers):
            refuse(source, span.name)
        return numbers

    def _widened(self, source: Checkpoint, stored: Tensor) -> Tensor:
        """Numbers in the dtype of computation, on the device."""
        raw = self._lane.up(stored, id(source))
        wide = compute_dtype(raw.dtype)
        if raw.dtype == wide:
            return raw
        return self._room((id(source), "wide"), raw.numel(), wide).copy_(raw)

    def _room(self, key: Any, size: int, dtype: torch.dtype) -> Tensor:
        """Memory of the device."""
        if self._lane.device.type != "cpu":
            return torch.empty(size, dtype=dtype, device=self._lane.device)
        return self._lane.buffer(key, size, dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for itself, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def read_all(source: Checkpoint, name: str) -> Tensor:
    """A whole tensor in memory of its own, in the dtype of computation, checked."""
    tensor = source.read(name)
    tensor = tensor.to(compute_dtype(tensor.dtype))
    if not finite(tensor):
        refuse(source, name)
    return tensor


def refuse(source: Checkpoint, name: str) -> None:
    """Say that a tensor holds what no merge can use."""
    raise CheckpointError(
        f"{source.label}: {name!r} contains NaN or infinity\n"
        "Nothing was merged; look at how that model was trained or converted"
    )
