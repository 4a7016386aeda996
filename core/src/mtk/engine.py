"""The engine: runs one method over lazily read checkpoints, tensor by tensor.

It owns dtypes, order, chunks, seeds and checks; a method owns its mathematics. 16-bit
tensors are computed in float32 and rounded once. Threads work on several tensors, or
parts of large ones, at a time; what they give does not depend on how many they are.

Memory: for each thread, scope ``element`` holds one CHUNK of every source and of the
method's intermediate values; other scopes hold one whole tensor of each instead, in
float32. Nothing grows with the model, unless the result is kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mtk._checks import checked, rounded
from mtk._reading import Scratch, fit, read_part, read_whole
from mtk.errors import CheckpointError, MethodError, MtkError, first_line
from mtk.job import check_structure, find_tied, own_params, without_statistic
from mtk.loading import resolve
from mtk.pipeline import ordered
from mtk.randomness import Random

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.job import Job
    from mtk.writing import Output

    Put = Callable[[int, Tensor], None]

# Element-wise work is cut into slices of this many entries: a few hundred kB of float32
# for each expert, which stay in the second-level cache of common processors.
CHUNK = 1 << 16
# Entries of one piece of work, where a tensor can be cut: large enough that handing it
# out costs nothing, small enough that the threads finish together.
UNIT = 1 << 22


@dataclass(frozen=True, slots=True)
class _Unit:
    """A tensor, or entries ``start`` to ``end`` of one, as a piece of work."""

    name: str
    start: int
    end: int
    merged: bool
    twins: tuple[str, ...] = ()


def run(
    job: Job, names: Sequence[str], workers: int | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield (name, Tensor | PerTask | Routed) for every tensor, in the order of ``names``.

    A static result has the dtype of the first checkpoint.
    """
    _prepare(job, names)
    if job.method.scope == "model":
        yield from _run_model(job, names)
        return
    work = _Work(job, _scan(job, workers))
    units = _units(job, names, whole=True)
    done: dict[str, Any] = {}
    results = zip(units, ordered(units, work.value, workers), strict=True)
    for name in names:
        if name not in done:
            unit, value = next(results)
            done |= dict.fromkeys((unit.name, *unit.twins), value)
        if name not in job.report.tied and not job.merged(job.first.info(name)):
            job.report.copied.append(name)
        yield name, done.pop(name)


def write(
    job: Job, names: Sequence[str], output: Output, workers: int | None = None
) -> None:
    """Run a job with a static result, and put it into a file as it comes."""
    _prepare(job, names)
    if job.method.scope == "model":
        for name, value in _run_model(job, names):
            output.put(name, 0, value)
        return
    work = _Work(job, _scan(job, workers))

    def save(unit: _Unit) -> None:
        def put(start: int, value: Tensor) -> None:
            for name in (unit.name, *unit.twins):
                output.put(name, start, value)

        work.parts(unit, put)

    for _ in ordered(_units(job, names, whole=False), save, workers):
        pass
    job.report.copied += [n for n in names if not job.merged(job.first.info(n))]


def _prepare(job: Job, names: Sequence[str]) -> None:
    check_structure(job)
    job.report.tied = find_tied(job)
    if job.method.scope != "model":
        job.report.without_statistic |= without_statistic(job, names)


def _units(job: Job, names: Sequence[str], *, whole: bool) -> list[_Unit]:
    """Work in the order of ``names``; a tied tensor belongs to its twin's unit."""
    tied = job.report.tied
    twins: dict[str, list[str]] = {}
    for name, twin in tied.items():
        twins.setdefault(twin, []).append(name)
    units: list[_Unit] = []
    step = CHUNK * max(1, UNIT // CHUNK)
    cut = all(hasattr(source, "part") for source in job.sources)
    for name in dict.fromkeys(tied.get(name, name) for name in names):
        unit = _unit(job, name, tuple(twins.get(name, ())))
        if whole or not cut or (unit.merged and not _sliceable(job)):
            units.append(unit)
            continue
        for start in range(0, max(unit.end, 1), step):
            end = min(start + step, unit.end)
            units.append(replace(unit, start=start, end=end))
    return units


def _unit(job: Job, name: str, twins: tuple[str, ...] = ()) -> _Unit:
    """All of a tensor."""
    info = job.first.info(name)
    return _Unit(name, 0, torch.Size(info.shape).numel(), job.merged(info), twins)


def _extras(
    job: Job, name: str, summary: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Parameters, and what else a method declared; ``name`` is "" in model scope."""
    method = job.method
    params = job.params_of(name)
    extras = own_params(method, params)
    if method.needs.info:
        extras["info"] = job.first.info(name)
    if method.stochastic:
        extras["random"] = Random(params["seed"], name, job.masks)
    if summary is not None:
        extras["summary"] = summary
    return extras


def _scan(job: Job, workers: int | None) -> dict[str, Any] | None:
    """Sums over all tensors, added in the order of the names."""
    if job.method.scope != "two-pass":
        return None
    names = [
        name
        for name in job.first.names()
        if name not in job.report.tied and job.merged(job.first.info(name))
    ]
    summary: dict[str, Any] = {}
    for scan in job.method.scans:
        if any(job.params[name] not in values for name, values in scan.when.items()):
            continue
        work = _Work(job, summary, scan.target)
        sums: dict[str, Any] = {}
        job.report.passes += 1
        for found in ordered(names, work.scan, workers):
            for key, value in found.items():
                sums[key] = _add(sums[key], value) if key in sums else value
        summary |= sums
    return summary


def _add(total: Any, value: Any) -> Any:
    """The sum, in the memory of ``total`` where the scan's results allow it."""
    if (
        isinstance(total, torch.Tensor)
        and isinstance(value, torch.Tensor)
        and (total.shape, total.dtype) == (value.shape, value.dtype)
        and total.is_contiguous()
    ):
        return total.add_(value)
    return total + value


class _Work:
    """What threads do with the tensors of a job, for one pass."""

    def __init__(
        self, job: Job, summary: Mapping[str, Any] | None, target: Any = None
    ) -> None:
        self._job, self._summary, self._scratch = job, summary, Scratch()
        self._target = resolve(target or job.method.target)
        self._known = {
            statistic: [set(file.names()) for file in files]
            for statistic, files in job.statistics.items()
        }
        if target is None:
            job.report.passes += 1

    def value(self, unit: _Unit) -> Any:
        """The whole result of a tensor, in memory."""
        job, name = self._job, unit.name
        if not unit.merged:
            _compare(job, unit)
            return _copy(job, name, job.first.read(name))
        if not self.sliced(name):
            return checked(job, name, self.call(name))
        info = job.result(name)
        result = torch.empty(unit.end, dtype=_dtype(job, name))

        def put(start: int, value: Tensor) -> None:
            result[start : start + len(value)] = value

        self._slices(unit, put)
        return result.view(info.shape)

    def parts(self, unit: _Unit, put: Put) -> None:
        """The result of a unit, handed over piece by piece."""
        job, name = self._job, unit.name
        if not unit.merged:
            _compare(job, unit)
            for start, end in _steps(unit):
                put(start, _copy(job, name, read_part(job.first, name, start, end)))
        elif self.sliced(name):
            self._slices(unit, put)
        else:
            put(0, checked(job, name, self.call(name, self._scratch)))

    def scan(self, name: str) -> dict[str, Any]:
        """What a scan counts in one tensor."""
        found = self.call(name, self._scratch)
        # Copies: inputs' memory is used again, and sums grow in place.
        return {
            key: value.clone() if isinstance(value, torch.Tensor) else value
            for key, value in found.items()
        }

    def call(self, name: str, scratch: Scratch | None = None) -> Any:
        """What the method's function returns for a whole tensor."""
        given = self._given(name, lambda source: read_whole(source, name, scratch))
        extras = _extras(self._job, name, self._summary)
        return _call(self._job, self._target, name, given | extras)

    def sliced(self, name: str) -> bool:
        size = torch.Size(self._job.first.info(name).shape).numel()
        return size > CHUNK and _sliceable(self._job)

    def _slices(self, unit: _Unit, put: Put) -> None:
        """Call the method slice by slice; hand over what it returns, rounded."""
        job, name = self._job, unit.name
        extras = _extras(job, name, self._summary)
        whole: dict[int, Tensor] = {}  # of sources that cannot be read in part

        def read(source: Checkpoint, start: int, end: int) -> Tensor:
            if hasattr(source, "part"):
                return fit(source, name, source.part(name, start, end))
            if id(source) not in whole:
                whole[id(source)] = source.read(name).flatten()
            return fit(source, name, whole[id(source)][start:end])

        for start, end in _steps(unit):
            given = self._given(name, partial(read, start=start, end=end))
            value = _call(job, self._target, name, given | extras)
            if not isinstance(value, torch.Tensor) or value.shape != (end - start,):
                raise MethodError(
                    f"{job.method.name}: {name!r}: an element method must return a tensor "
                    f"of the shape it was given, {(end - start,)}"
                )
            put(start, rounded(job, name, value))

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


def _compare(job: Job, unit: _Unit) -> None:
    """Integer buffers must agree; other tensors outside the merge need not."""
    name = unit.name
    if job.first.info(name).role != "buffer":
        return
    for start, end in _steps(unit):
        value = read_part(job.first, name, start, end)
        for source in job.sources[1:]:
            if not torch.equal(value, read_part(source, name, start, end)):
                raise CheckpointError(
                    f"{name!r} holds whole numbers that differ between "
                    f"{job.first.label} and {source.label}; they cannot be merged"
                )


def _copy(job: Job, name: str, tensor: Tensor) -> Tensor:
    """What is not merged, as it is, in the dtype of the result."""
    if tensor.dtype == _dtype(job, name):
        return tensor
    return rounded(job, name, fit(job.first, name, tensor))


def _steps(unit: _Unit) -> Iterator[tuple[int, int]]:
    for start in range(unit.start, unit.end, CHUNK):
        yield start, min(start + CHUNK, unit.end)


def _sliceable(job: Job) -> bool:
    """Whether the method may see slices. A Gram matrix has no slices."""
    method = job.method
    return (
        method.scope == "element"
        and method.output == "static"
        and "gram" not in method.needs.statistics
    )


def _dtype(job: Job, name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, job.result(name).dtype)
    return dtype


def _tensors(arguments: Mapping[str, Any]) -> list[Tensor]:
    found = []
    for value in arguments.values():
        items = value if isinstance(value, list) else [value]
        found += [item for item in items if isinstance(item, torch.Tensor)]
    return found


def _call(
    job: Job, target: Callable[..., Any], name: str, arguments: dict[str, Any]
) -> Any:
    """Call a method's function; name method and tensor in whatever goes wrong."""
    inputs = _tensors(arguments)
    versions = [tensor._version for tensor in inputs]
    try:
        with torch.no_grad():
            result = target(**arguments)
    except MtkError:
        raise
    except Exception as error:
        raise MethodError(
            f"{job.method.name} failed on {name!r} {job.first.info(name).shape}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if versions != [tensor._version for tensor in inputs]:
        raise MethodError(
            f"{job.method.name} changed its inputs at {name!r}; work on copies\n"
            "(an in-place operation such as += or .mul_() on an argument)"
        )
    return result


def _run_model(job: Job, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    method = job.method
    merged = [
        name
        for name in job.first.names()
        if job.merged(job.first.info(name)) and name not in job.report.tied
    ]
    given: dict[str, Any] = {
        "experts": [
            {name: read_whole(expert, name) for name in merged}
            for expert in job.experts
        ]
    }
    if method.needs.base:
        base = job.base
        given["base"] = (
            None if base is None else {name: read_whole(base, name) for name in merged}
        )
    if method.needs.data != "none":
        given["tasks"] = list(job.tasks)
    states = [*given["experts"], given.get("base") or {}]
    inputs = [tensor for state in states for tensor in state.values()]
    versions = [tensor._version for tensor in inputs]
    job.report.passes += 1
    try:
        with torch.enable_grad() if method.needs.gradients else torch.no_grad():
            result = resolve(method.target)(**given, **_extras(job, ""))
    except MtkError:
        raise
    except Exception as error:
        raise MethodError(
            f"{method.name} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if versions != [tensor._version for tensor in inputs]:
        raise MethodError(f"{method.name} changed its inputs; work on copies")
    if set(result) != set(merged):
        odd = min(set(result) ^ set(merged))
        raise MethodError(f"{method.name} returned other tensors than it got: {odd!r}")
    for name in names:
        twin = job.report.tied.get(name, name)
        if twin in result:
            yield name, checked(job, name, result[twin])
        else:
            _compare(job, _unit(job, name))
            job.report.copied.append(name)
            yield name, _copy(job, name, job.first.read(name))


class Ready:
    """A job whose scans are done, read tensor by tensor by whoever asks."""

    def __init__(self, job: Job) -> None:
        _prepare(job, job.first.names())
        self._job = job
        self._work = _Work(job, _scan(job, None))

    def read(self, name: str) -> Tensor:
        """One tensor of the result."""
        twin = self._job.report.tied.get(name, name)
        value: Tensor = self._work.value(_unit(self._job, twin))
        return value

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat; computed alone where they can be."""
        name = self._job.report.tied.get(name, name)
        unit = _unit(self._job, name)
        if not unit.merged or not self._work.sliced(name):
            return self.read(name).flatten()[start:end]
        result = torch.empty(end - start, dtype=_dtype(self._job, name))

        def put(at: int, value: Tensor) -> None:
            result[at - start : at - start + len(value)] = value

        self._work.parts(replace(unit, start=start, end=end), put)
        return result
