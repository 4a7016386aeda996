"""A merge as the input of another one: computed tensor by tensor, when it is read."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock, local
from typing import TYPE_CHECKING

import torch

from mtk._units import Span, whole
from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtk.assembly import Part
    from mtk.declare import TensorInfo
    from mtk.job import Job


class Computed:
    """The static result of a plan's parts, seen as a checkpoint.

    Nothing is kept: each reading computes a tensor again, rounded to the dtype of the
    result, as if it had been written to a file. What a two-pass method adds up over the
    model is computed once, at the first reading.
    """

    kind = "full"

    def __init__(self, parts: Sequence[Part], label: str) -> None:
        for part in parts:
            method = part.job.method
            if method.output != "static" or method.scope == "model":
                raise UsageError(
                    f"{label}: {method.name} cannot be an earlier stage of a recipe\n"
                    "Stages are methods that give one checkpoint, tensor by tensor"
                )
        self.label, self.parts = label, tuple(parts)
        self._parts = {name: part for part in parts for name in part.names}
        self._ready: dict[int, Ready] = {}
        self._lock = Lock()

    def names(self) -> Sequence[str]:
        """Tensor names, sorted."""
        return sorted(self._parts)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        return self._parts[name].job.result(name)

    def settle(self) -> None:
        """Let the sources settle the roles of their tensors, where they can."""
        for part in self.parts:
            for source in part.job.sources:
                getattr(source, "settle", lambda: None)()

    def read(self, name: str) -> Tensor:
        """One tensor of the result."""
        return self._job(name).read(name)

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat."""
        return self._job(name).part(name, start, end)

    def _job(self, name: str) -> Ready:
        job = self._parts[name].job
        with self._lock:
            if id(job) not in self._ready:
                self._ready[id(job)] = Ready(job)
            return self._ready[id(job)]


class _Last(local):
    name = ""
    tensor: Tensor | None = None


class Ready:
    """A job whose scans are done, read tensor by tensor by whoever asks."""

    def __init__(self, job: Job) -> None:
        from mtk.engine import prepare

        self._job, self._merge = job, prepare(job)
        self._last = _Last()

    def read(self, name: str) -> Tensor:
        """One tensor of the result."""
        value: Tensor = self._merge.value(whole(self._job, self._twin(name)))
        return value

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat; computed alone where they can be."""
        unit = whole(self._job, self._twin(name))
        if not self._merge.divisible(unit) or not self._merge.large(unit.name):
            return self._whole(unit.name)[start:end]
        dtype: torch.dtype = getattr(torch, self._job.result(name).dtype)
        result = torch.empty(end - start, dtype=dtype)

        def put(at: int, value: Tensor) -> None:
            result[at - start : at - start + value.numel()] = value.reshape(-1)

        self._merge.parts(replace(unit, spans=(Span(unit.name, start, end),)), put)
        return result

    def _whole(self, name: str) -> Tensor:
        """A tensor that is read in parts, but made in one go; the thread's last stays."""
        if self._last.name != name:
            self._last.tensor = None  # before there is another one
            self._last.tensor = self.read(name).flatten()
            self._last.name = name
        assert self._last.tensor is not None
        return self._last.tensor

    def _twin(self, name: str) -> str:
        return self._job.report.tied.get(name, name)
