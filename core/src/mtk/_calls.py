"""Calls of a method's functions, and what goes wrong in them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mtk._device import move
from mtk.errors import MethodError, MtkError, first_line
from mtk.job import own_params
from mtk.loading import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from mtk._device import Lane
    from mtk._reading import Meter, Reader
    from mtk._units import Span, Unit
    from mtk.adapters import Checkpoint
    from mtk.job import Job
    from mtk.randomness import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What all passes of a run share.

    Args:
        chunk: entries of one slice for a merge.
        scanned: entries of one slice for a scan.
        unit: entries of one piece of work.
        random: makes the random streams of a tensor.
    """

    chunk: int
    scanned: int
    unit: int
    random: type[Random]
    lane: Lane
    meter: Meter
    workers: int | None


class Caller:
    """Calls one function of a method, with what the method declared."""

    def __init__(
        self,
        job: Job,
        frame: Frame,
        reader: Reader,
        target: Any,
        summary: Mapping[str, Any] | None,
    ) -> None:
        self._job, self._frame, self._reader = job, frame, reader
        self._target = resolve(target)
        self._summary = None if summary is None else move(summary, frame.lane.device)
        self._known = {
            statistic: [set(file.names()) for file in files]
            for statistic, files in job.statistics.items()
        }
        self._params = own_params(job.method, job.params)

    def slices(
        self, unit: Unit, size: int, own: Mapping[str, Any]
    ) -> Iterator[tuple[int, Any]]:
        """What the function returns for each slice of a unit, and where that begins.

        A tensor of at most ``size`` entries comes as a whole, in its shape. ``own`` are
        the sums that belong to this tensor alone.
        """
        (span,) = unit.spans
        if (span.start, span.end) == (0, self._entries(span.name)) and (
            span.end <= size
        ):
            yield 0, self.whole(span.name, own)
            return
        extras = self._extras(span.name, own)
        random: Random | None = extras.get("random")
        for step in span.steps(size):
            if random is not None:
                random.at(step.start)
            given = self._given(span.name, partial(self._flat, spans=[step]))
            yield step.start, self._call(span.name, given | extras)

    def joined(self, spans: Sequence[Span]) -> Any:
        """What the function returns for several tensors, end to end."""
        name = spans[0].name
        given = self._given(name, partial(self._flat, spans=spans))
        return self._call(name, given | self._extras(name, {}))

    def whole(self, name: str, own: Mapping[str, Any]) -> Any:
        """What the function returns for a whole tensor."""
        given = self._given(name, lambda source: self._reader.whole(source, name))
        return self._call(name, given | self._extras(name, own))

    def _flat(self, source: Checkpoint, *, spans: Sequence[Span]) -> Tensor:
        return self._reader.flat(source, spans)

    def _entries(self, name: str) -> int:
        return torch.Size(self._job.first.info(name).shape).numel()

    def _given(self, name: str, read: Callable[[Checkpoint], Tensor]) -> dict[str, Any]:
        """The tensors a method declared, under their keywords."""
        job, needs = self._job, self._job.method.needs
        given: dict[str, Any] = {"experts": [read(expert) for expert in job.experts]}
        if needs.base:
            given["base"] = None if job.base is None else read(job.base)
        for statistic in needs.statistics:
            pairs = zip(job.statistics[statistic], self._known[statistic], strict=True)
            given[statistic] = [
                read(file) if name in known else None for file, known in pairs
            ]
        return given

    def _extras(self, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters, and what else a method declared."""
        job, frame = self._job, self._frame
        params = job.params_of(name)
        extras = (
            own_params(job.method, params) if name in job.varied else dict(self._params)
        )
        if job.method.needs.info:
            extras["info"] = job.first.info(name)
        if job.method.stochastic:
            entries = self._entries(name)
            extras["random"] = frame.random(params["seed"], name, job.masks, entries)
        if self._summary is not None:
            mine = move(dict(own), frame.lane.device) if own else {}
            extras["summary"] = {**self._summary, **mine}
        return extras

    def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        inputs = tensors(arguments)
        versions = [tensor._version for tensor in inputs]
        with blamed(self._job, name):
            result = self._target(**arguments)
        if versions != [tensor._version for tensor in inputs]:
            raise MethodError(
                f"{self._job.method.name} changed its inputs at {name!r}; work on copies\n"
                "(an in-place operation such as += or .mul_() on an argument)"
            )
        return result


@contextmanager
def blamed(job: Job, name: str = "") -> Iterator[None]:
    """Name method and tensor in whatever goes wrong in a method."""
    try:
        yield
    except MtkError:
        raise
    except Exception as error:
        what = f" on {name!r} {job.first.info(name).shape}" if name else ""
        raise MethodError(
            f"{job.method.name} failed{what}: {type(error).__name__}: {first_line(error)}"
        ) from error


def tensors(arguments: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among arguments and in their lists."""
    found = []
    for value in arguments.values():
        items = value if isinstance(value, list) else [value]
        found += [item for item in items if isinstance(item, torch.Tensor)]
    return found
