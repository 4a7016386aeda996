"""The engine: runs one method over lazily read checkpoints, tensor by tensor.

It owns dtypes, order, slices, devices, seeds and checks; a method owns its mathematics.
16-bit tensors are computed in float32 and rounded once. Threads work on several tensors,
or parts of large ones, at a time; what they give does not depend on how many they are.

Memory: where a method may be given slices, each thread holds one slice of every source
and of the method's intermediate values; else one whole tensor of each, in float32.
Nothing grows with the model, unless the result is kept in memory
(:func:`mtk.memory.expected_memory`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk._calls import Caller, Frame
from mtk._checks import checked, rounded
from mtk._device import Lane, find_device, move
from mtk._libc import keep_freed_memory
from mtk._models import run_model
from mtk._reading import Meter, Reader, compute_dtype
from mtk._scans import Sums, whole_tensors
from mtk._units import Span, Unit, cut, entries, whole, with_part
from mtk.errors import CheckpointError, MethodError
from mtk.job import check_structure, holders, without_statistic
from mtk.pipeline import ordered
from mtk.randomness import Random
from mtk.results import PerTask, Routed
from mtk.tied import find_tied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from mtk.job import Job
    from mtk.writing import Output

    Put = Callable[[int, Tensor], None]
    Progress = Callable[[int], None]

# Entries of one slice for a merge: a few hundred kB of float32 for each expert, which
# stay in the second-level cache of common processors. On a GPU they are more, so that
# starting its work costs little beside.
CHUNK = 1 << 18
GPU_CHUNK = 1 << 24
# A scan gets slices of this many chunks, so that handing over what it counted costs
# little beside counting.
SCANNED = 2
# Entries of one piece of work, where a tensor can be cut: large enough that handing it
# out costs nothing, small enough that the threads finish together.
UNIT = 1 << 22


def run(
    job: Job,
    names: Sequence[str],
    workers: int | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield (name, Tensor | PerTask | Routed) for every tensor, in the order of ``names``.

    A static result has the dtype of the first checkpoint.

    Args:
        job: what to merge; it gets its report.
        names: of all tensors of the result.
        workers: threads; the result is the same for every number of them.
        device: where the method computes, ``cpu`` or ``cuda``.
        progress: is told how many bytes of inputs were read since its last call.
    """
    frame = _prepare(job, names, workers, device, progress)
    if job.method.scope == "model":
        yield from run_model(job, names, frame)
        return
    merge = _Merge(job, frame, fresh=True)
    units = _units(job, names)
    done: dict[str, Any] = {}
    results = zip(units, ordered(units, merge.value, workers), strict=True)
    for name in names:
        if name not in done:
            unit, value = next(results)
            done |= dict.fromkeys((unit.name, *unit.twins), value)
        if name not in job.report.tied and not job.merged(job.first.info(name)):
            job.report.copied.append(name)
        yield name, done.pop(name)


def write(
    job: Job,
    names: Sequence[str],
    output: Output,
    workers: int | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Run a job with a static result, and put it into a file as it comes.

    Arguments are those of :func:`run`; ``output`` takes the parts.
    """
    frame = _prepare(job, names, workers, device, progress)
    if job.method.scope == "model":
        for name, value in run_model(job, names, frame):
            output.put(name, 0, value)
        return
    merge = _Merge(job, frame)

    def save(unit: Unit) -> None:
        def put(start: int, value: Tensor) -> None:
            for name in (unit.name, *unit.twins):
                output.put(name, start, value)

        merge.parts(unit, put)

    pieces = _units(job, names)
    if with_part(job):
        pieces = cut(pieces, merge.divisible, frame.unit)
    for _ in ordered(pieces, save, workers):
        pass
    job.report.copied += [n for n in names if not job.merged(job.first.info(n))]


def prepare(job: Job) -> _Merge:
    """A job whose scans are done, for a result that is read tensor by tensor."""
    names = job.first.names()
    return _Merge(job, _prepare(job, names, None, "cpu", None), fresh=True)


def _prepare(
    job: Job,
    names: Sequence[str],
    workers: int | None,
    device: str,
    progress: Progress | None,
) -> Frame:
    where = find_device(device)
    if where.type != "cpu" and job.method.scope == "model":
        raise MethodError(f"{job.method.name} computes on the CPU only")
    check_structure(job)
    keep_freed_memory()
    job.report.tied = find_tied(job)
    if job.method.scope != "model":
        job.report.without_statistic |= without_statistic(job, names)
    chunk = CHUNK if where.type == "cpu" else GPU_CHUNK
    return Frame(
        chunk=chunk,
        scanned=chunk * (SCANNED if where.type == "cpu" else 1),
        unit=chunk * max(1, UNIT // chunk),
        random=Random,
        lane=Lane(where),
        meter=Meter(progress),
        workers=workers,
    )


def _units(job: Job, names: Sequence[str]) -> list[Unit]:
    """Whole tensors in the order of ``names``; a tied one belongs to its twin's unit."""
    tied = job.report.tied
    twins: dict[str, list[str]] = {}
    for name, twin in tied.items():
        twins.setdefault(twin, []).append(name)
    firsts = dict.fromkeys(tied.get(name, name) for name in names)
    return [whole(job, name, tuple(twins.get(name, ()))) for name in firsts]


class _Merge:
    """What threads do with the tensors of a job, in the last pass."""

    def __init__(self, job: Job, frame: Frame, *, fresh: bool = False) -> None:
        self._job, self._frame = job, frame
        self._sums = Sums(job, frame)
        self._sliced = not whole_tensors(job, self._sums)
        check = not self._sums.read
        self._reader = Reader(frame.lane, frame.meter, check=check, fresh=fresh)
        self._call = Caller(
            job, frame, self._reader, job.method.target, self._sums.total
        )
        self._copies = Reader(frame.lane, frame.meter)
        job.report.passes += 1 + len(self._sums.apart)

    def divisible(self, unit: Unit) -> bool:
        """Whether several threads may share a tensor.

        Random numbers come one after the other, and sums of the tensor alone are made
        once, by one thread.
        """
        if not unit.merged:
            return True
        job = self._job
        return self._sliced and not job.method.stochastic and not self._sums.apart

    def value(self, unit: Unit) -> Any:
        """The whole result of a tensor, in memory."""
        job, name = self._job, unit.name
        info = job.result(name)
        if unit.merged and not (self._sliced and self.large(name)):
            with torch.no_grad(), self._frame.lane.context():
                own = self._sums.own(name, self._reader)
                return self._host(checked(job, name, self._call.whole(name, own)))
        result = torch.empty(entries(job, name), dtype=getattr(torch, info.dtype))

        def put(start: int, value: Tensor) -> None:
            result[start : start + value.numel()] = value.reshape(-1)

        self.parts(unit, put)
        return result.view(info.shape)

    def parts(self, unit: Unit, put: Put) -> None:
        """The result of a unit, handed over piece by piece."""
        with torch.no_grad(), self._frame.lane.context():
            if not unit.merged:
                self._copy(unit, put)
                return
            name, job = unit.name, self._job
            own = self._sums.own(name, self._reader)
            if not (self._sliced and self.large(name)):
                value = checked(job, name, self._call.whole(name, own))
                put(0, self._frame.lane.down(value))
            else:
                self._slices(unit, own, put)

    def _slices(self, unit: Unit, own: Mapping[str, Any], put: Put) -> None:
        job, name = self._job, unit.name
        (span,) = unit.spans
        for start, value in self._call.slices(unit, self._frame.chunk, own):
            size = min(self._frame.chunk, span.end - start)
            if not isinstance(value, torch.Tensor) or value.shape != (size,):
                raise MethodError(
                    f"{job.method.name}: {name!r}: a method of scope {job.method.scope} "
                    f"that is given slices must return\na tensor of the shape it was "
                    f"given, {(size,)}"
                )
            put(start, self._frame.lane.down(rounded(job, name, value)))

    def large(self, name: str) -> bool:
        """Whether a tensor is more than one slice."""
        return entries(self._job, name) > self._frame.chunk

    def _host(self, value: Any) -> Any:
        """What a method returned for a whole tensor, in the host's memory."""
        host = torch.device("cpu")
        if isinstance(value, PerTask):
            codes = [move(dict(code), host) for code in value.codes]
            return PerTask(move(value.shared, host), codes)
        if isinstance(value, Routed):
            return Routed(move(value.value, host), move(dict(value.parts), host))
        return move(value, host)

    def _copy(self, unit: Unit, put: Put) -> None:
        """What is not merged, as it is, in the dtype of the result."""
        job, name = self._job, unit.name
        dtype: torch.dtype = getattr(torch, job.result(name).dtype)
        buffer = job.first.info(name).role == "buffer"
        (span,) = unit.spans
        for step in span.steps(self._frame.chunk):
            tensor = self._copies.raw(job.first, step)
            if buffer:
                self._compare(step, tensor)
            if tensor.dtype != dtype:
                wide = tensor.to(compute_dtype(tensor.dtype))
                tensor = rounded(job, name, wide)
            put(step.start, tensor)

    def _compare(self, step: Span, value: Tensor) -> None:
        """Whole numbers must agree where they are; others outside the merge need not."""
        first, *others = holders(self._job, step.name)
        for source in others:
            if not torch.equal(value, self._copies.raw(source, step)):
                raise CheckpointError(
                    f"{step.name!r} holds whole numbers that differ between "
                    f"{first.label} and {source.label}; they cannot be merged"
                )
