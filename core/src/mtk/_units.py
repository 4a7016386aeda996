"""How the tensors of a job are cut and joined into pieces of work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mtk.declare import Scan
    from mtk.job import Job

# Tensors of fewer entries are joined with their neighbours, where a scan allows it.
SMALL = 1 << 14


@dataclass(frozen=True, slots=True)
class Span:
    """Entries ``start`` to ``end`` of a tensor, counted flat."""

    name: str
    start: int
    end: int

    def steps(self, size: int) -> Iterator[Span]:
        """The span, in spans of at most ``size`` entries."""
        for start in range(self.start, self.end, size):
            yield Span(self.name, start, min(start + size, self.end))


@dataclass(frozen=True, slots=True)
class Unit:
    """A tensor or a part of one, or several whole tensors, as a piece of work."""

    spans: tuple[Span, ...]
    merged: bool = True
    twins: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The first tensor's name."""
        return self.spans[0].name


def entries(job: Job, name: str) -> int:
    """How many numbers a tensor has."""
    return torch.Size(job.first.info(name).shape).numel()


def whole(job: Job, name: str, twins: tuple[str, ...] = ()) -> Unit:
    """All of a tensor."""
    merged = job.merged(job.first.info(name))
    return Unit((Span(name, 0, entries(job, name)),), merged, twins)


def cut(units: Iterable[Unit], may: Callable[[Unit], bool], size: int) -> list[Unit]:
    """Units of at most ``size`` entries, where a unit may be cut."""
    pieces: list[Unit] = []
    for unit in units:
        span = unit.spans[0]
        if len(unit.spans) > 1 or not may(unit) or span.end <= size:
            pieces.append(unit)
            continue
        pieces += [Unit((s,), unit.merged, unit.twins) for s in span.steps(size)]
    return pieces


def join(job: Job, names: Iterable[str], size: int) -> list[Unit]:
    """Units of whole tensors; small neighbours with equal parameters share one."""
    units: list[Unit] = []
    group: list[Span] = []
    room, shared = 0, None
    for name in names:
        count = entries(job, name)
        kind = job.first.info(name).dtype, job.varied.get(name)
        if group and (count > SMALL or count > room or kind != shared):
            units.append(Unit(tuple(group)))
            group = []
        if count > SMALL:
            units.append(whole(job, name))
            continue
        if not group:
            room, shared = size, kind
        group.append(Span(name, 0, count))
        room -= count
    return [*units, Unit(tuple(group))] if group else units


def with_part(job: Job) -> bool:
    """Whether parts of every source can be read without reading the whole tensor."""
    return all(hasattr(source, "part") for source in job.sources)


def sliceable(job: Job, scans: Iterable[Scan]) -> bool:
    """Whether the method may see slices. A Gram matrix has no slices.

    ``scans`` are those that run.
    """
    method = job.method
    if method.output != "static" or "gram" in method.needs.statistics:
        return False
    if method.scope == "two-pass":
        allowed = any(scan.slices for scan in method.scans)
        return allowed and all(scan.slices for scan in scans)
    return method.scope == "element"
