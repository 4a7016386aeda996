"""One merge as it was asked for: what it reads, and whether that fits together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import CheckpointError
from mtk.results import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.declare import Method, TensorInfo


@dataclass(slots=True, kw_only=True)
class Job:
    """Everything one merge reads. ``params`` are complete and checked.

    ``varied`` holds parameters of single tensors that differ from ``params``; ``dtype`` is
    that of the result's floating-point tensors, where it is not the first checkpoint's;
    ``chosen`` are the tensors that are merged, among those that fit ``only``.
    """

    method: Method
    experts: Sequence[Checkpoint]
    base: Checkpoint | None
    params: Mapping[str, Any]
    varied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dtype: str | None = None
    statistics: Mapping[str, Sequence[Checkpoint]] = field(default_factory=dict)
    only: Sequence[str] = ("*",)
    chosen: frozenset[str] | None = None
    masks: Mapping[str, Tensor] | None = None
    tasks: Sequence[Any] = ()
    report: Report = field(default_factory=Report)

    @property
    def first(self) -> Checkpoint:
        """Gives layout, dtypes and untouched tensors."""
        return self.base or self.experts[0]

    @property
    def sources(self) -> list[Checkpoint]:
        """Base, where there is one, and experts."""
        return [*([self.base] if self.base else []), *self.experts]

    def merged(self, info: TensorInfo) -> bool:
        """Whether the method sees this tensor at all."""
        if self.chosen is not None and info.name not in self.chosen:
            return False
        return takes(self.only, info)

    def params_of(self, name: str) -> Mapping[str, Any]:
        """The parameters for one tensor."""
        return (
            {**self.params, **self.varied[name]} if name in self.varied else self.params
        )

    def result(self, name: str) -> TensorInfo:
        """One tensor of a static result."""
        info = self.first.info(name)
        if self.dtype is None or info.role == "buffer":
            return info
        return replace(info, dtype=self.dtype)


def takes(patterns: Sequence[str], info: TensorInfo) -> bool:
    """Whether a tensor is merged: floating point, and matched by one of the patterns."""
    return info.role != "buffer" and any(fnmatchcase(info.name, p) for p in patterns)


def holders(job: Job, name: str) -> list[Checkpoint]:
    """The first checkpoint, and all others that have a tensor of that name too."""
    first, *others = job.sources
    return [first, *(source for source in others if _has(source, name))]


def _has(source: Checkpoint, name: str) -> bool:
    try:
        source.info(name)
    except (LookupError, CheckpointError):
        return False
    return True


def own_params(method: Method, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters a method's functions receive: not the seed, not a statistic's."""
    return {
        param.name: params[param.name]
        for param in method.params
        if param.stage == "merge" and not (method.stochastic and param.name == "seed")
    }


def check_structure(job: Job) -> None:
    """Same names, shapes and dtypes everywhere, or an error that names the tensor."""
    for text in mismatches(job):
        raise CheckpointError(text)


def mismatches(job: Job) -> Iterator[str]:
    """Everything in which the sources do not fit together, one message each."""
    names = set(job.first.names())
    for source in job.sources[1:]:
        yield from _odd_names(job, source, names)
        yield from _odd_tensors(job, source, names)
    merged = (job.merged(job.first.info(name)) for name in names)
    if job.chosen is None and not any(merged):
        yield f"no floating-point tensor matches {', '.join(job.only)}"
    for statistic, files in job.statistics.items():
        for file in files:
            yield from _unfit_statistic(job, statistic, file)


def _odd_names(job: Job, source: Checkpoint, names: set[str]) -> Iterator[str]:
    """Tensors that one model lacks. Outside the merge they do not matter."""
    other = set(source.names())
    mine = names if job.chosen is None else names & job.chosen
    for odd in sorted(mine - other | (other - names)):
        if not any(fnmatchcase(odd, pattern) for pattern in job.only):
            continue
        has, lacks = (job.first, source) if odd in names else (source, job.first)
        yield (
            f"{odd!r} is in {has.label} but not in {lacks.label}\n"
            f"({len(names - other)} missing, {len(other - names)} extra in all)"
        )


def _odd_tensors(job: Job, source: Checkpoint, names: set[str]) -> Iterator[str]:
    """Tensors of another shape or dtype, as far as they are merged or compared."""
    for name in sorted(names & set(source.names())):
        here, there = job.first.info(name), source.info(name)
        if here.role != "buffer" and not job.merged(here):
            continue
        for what in ("shape",) if job.dtype else ("shape", "dtype"):
            one, two = getattr(here, what), getattr(there, what)
            if one != two:
                yield (
                    f"{job.method.name}: {name!r} has {what} {one} in {job.first.label}, "
                    f"{two} in {source.label}{_remedy(what)}"
                )


def _remedy(what: str) -> str:
    return (
        "\nSay what the result has: --dtype, or dtype in the recipe"
        if what == "dtype"
        else ""
    )


def _unfit_statistic(job: Job, statistic: str, file: Checkpoint) -> Iterator[str]:
    names = set(job.first.names())
    for name in file.names():
        if name not in names:
            yield f"{file.label}: {statistic} for {name!r}, which the models lack"
            continue
        shape, found = job.first.info(name).shape, file.info(name).shape
        wanted = shape if statistic == "fisher" else (shape[-1:] * 2 if shape else ())
        if found != wanted:
            yield f"{file.label}: {statistic} of {name!r} is {found}, not {wanted}"


def find_tied(job: Job) -> dict[str, str]:
    """Matrices equal in all checkpoints to an earlier one -> that one's name.

    Such matrices are one tied tensor under two names. They are merged, counted and drawn
    once. Constant matrices are left out: their equality means nothing.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in job.first.names():
        info = job.first.info(name)
        if len(info.shape) >= 2 and 0 not in info.shape and job.merged(info):
            sample = _head(job.first, name).double().tolist()
            groups.setdefault((info.shape, info.dtype, *sample), []).append(name)
    tied: dict[str, str] = {}
    for names in groups.values():
        originals: list[str] = []
        for name in names if len(names) > 1 else ():
            if _constant(job.first.read(name)):
                continue
            twin = next((t for t in originals if _same(job, name, t)), None)
            if twin is None:
                originals.append(name)
            else:
                tied[name] = twin
    return tied


def _head(source: Checkpoint, name: str) -> Tensor:
    """The first entries; as little of the file as possible."""
    if hasattr(source, "part"):
        size = torch.Size(source.info(name).shape).numel()
        part: Tensor = source.part(name, 0, min(16, size))
        return part
    return source.read(name).flatten()[:16]


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _same(job: Job, name: str, twin: str) -> bool:
    return all(
        torch.equal(source.read(name), source.read(twin)) for source in job.sources
    )


def without_statistic(job: Job, names: Sequence[str]) -> dict[str, list[str]]:
    """Merged tensors that a statistic of some expert does not reach."""
    missing: dict[str, list[str]] = {}
    for statistic in job.method.needs.statistics:
        known = [set(file.names()) for file in job.statistics[statistic]]
        absent = [
            name
            for name in names
            if name not in job.report.tied
            and job.merged(job.first.info(name))
            and not all(name in there for there in known)
        ]
        if absent:
            missing[statistic] = absent
    return missing
