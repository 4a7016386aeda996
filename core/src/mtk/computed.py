"""A merge as the input of another one: computed tensor by tensor, when it is read."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtk.assembly import Part
    from mtk.declare import TensorInfo
    from mtk.engine import Ready


class Computed:
    """The static result of a plan's parts, seen as a checkpoint.

    Nothing is kept: each reading computes a tensor again. What a two-pass method adds up
    over the model is computed once, at the first reading.
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
        self.label = label
        self._parts = {name: part for part in parts for name in part.names}
        self._ready: dict[int, Ready] = {}
        self._lock = Lock()

    def names(self) -> Sequence[str]:
        """Tensor names, sorted."""
        return sorted(self._parts)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        return self._parts[name].job.result(name)

    def read(self, name: str) -> Tensor:
        """One tensor of the result."""
        return self._job(name).read(name)

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat."""
        return self._job(name).part(name, start, end)

    def _job(self, name: str) -> Ready:
        from mtk.engine import Ready

        job = self._parts[name].job
        with self._lock:
            if id(job) not in self._ready:
                self._ready[id(job)] = Ready(job)
            return self._ready[id(job)]
