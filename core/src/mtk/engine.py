"""The engine: runs one method over lazily read checkpoints, tensor by tensor.

It owns dtypes, order, chunks, seeds and checks; a method owns its mathematics. 16-bit
tensors are computed in float32 and rounded once. Tensors are visited in one fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import CheckpointError, MethodError, MtkError, first_line
from mtk.job import check_structure, find_tied, own_params
from mtk.loading import resolve
from mtk.randomness import Random
from mtk.results import PerTask, Routed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.job import Job

# Element-wise work is cut into slices of this many entries: a few MB of float32 for a
# handful of experts, which stays in the last-level cache of common processors.
CHUNK = 1 << 20


def run(job: Job, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name, Tensor | PerTask | Routed) for every tensor, in the order of ``names``.

    A static result has the dtype of the first checkpoint.
    """
    check_structure(job)
    job.report.tied = find_tied(job)
    if job.method.scope == "model":
        yield from _run_model(job, names)
        return
    summary = _scan(job)
    target = resolve(job.method.target)
    done: dict[str, Any] = {}
    kept = set(job.report.tied.values())
    job.report.passes += 1
    for name in names:
        twin = job.report.tied.get(name, name)
        if not job.merged(job.first.info(name)):
            yield name, _copy(job, name)
        elif twin in done:
            yield name, done[twin]
        else:
            value = _merge_tensor(job, target, twin, summary)
            if twin in kept:
                done[twin] = value
            yield name, value


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _read(source: Checkpoint, name: str) -> Tensor:
    tensor = source.read(name)
    tensor = tensor.to(_compute_dtype(tensor))
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{source.label}: {name!r} contains NaN or infinity\n"
            "Nothing was merged; look at how that model was trained or converted"
        )
    return tensor


def _given(job: Job, name: str) -> dict[str, Any]:
    """The tensors a method declared, under their keywords."""
    needs = job.method.needs
    given: dict[str, Any] = {"experts": [_read(expert, name) for expert in job.experts]}
    if needs.base:
        given["base"] = None if job.base is None else _read(job.base, name)
    for statistic in needs.statistics:
        files = job.statistics[statistic]
        given[statistic] = [
            _read(file, name) if name in file.names() else None for file in files
        ]
        if any(value is None for value in given[statistic]):
            missing = job.report.without_statistic.setdefault(statistic, [])
            if name not in missing:
                missing.append(name)
    return given


def _extras(
    job: Job, name: str, summary: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Parameters, and what else a method declared; ``name`` is "" in model scope."""
    method = job.method
    extras = own_params(method, job.params)
    if method.needs.info:
        extras["info"] = job.first.info(name)
    if method.stochastic:
        extras["random"] = Random(job.params["seed"], name, job.masks)
    if summary is not None:
        extras["summary"] = summary
    return extras


def _scan(job: Job) -> dict[str, Any] | None:
    if job.method.scope != "two-pass":
        return None
    summary: dict[str, Any] = {}
    for scan in job.method.scans:
        if any(job.params[name] not in values for name, values in scan.when.items()):
            continue
        target = resolve(scan.target)
        sums: dict[str, Any] = {}
        job.report.passes += 1
        for name in job.first.names():
            if name in job.report.tied or not job.merged(job.first.info(name)):
                continue
            given, extras = _given(job, name), _extras(job, name, summary)
            for key, value in _call(job, target, name, given | extras).items():
                sums[key] = sums[key] + value if key in sums else value
        summary |= sums
    return summary


def _merge_tensor(
    job: Job, target: Callable[..., Any], name: str, summary: Mapping[str, Any] | None
) -> Any:
    given, extras = _given(job, name), _extras(job, name, summary)
    info = job.first.info(name)
    size = torch.Size(info.shape).numel()
    if job.method.scope == "element" and job.method.output == "static" and size > CHUNK:
        value = _in_chunks(job, target, name, given, extras)
    else:
        value = _call(job, target, name, given | extras)
    return _checked(job, name, value)


def _in_chunks(
    job: Job,
    target: Callable[..., Any],
    name: str,
    given: dict[str, Any],
    extras: dict[str, Any],
) -> Tensor:
    flat: dict[str, Any] = {
        key: [_flatten(part) for part in value]
        if isinstance(value, list)
        else _flatten(value)
        for key, value in given.items()
    }
    shape = given["experts"][0].shape
    result = torch.empty_like(flat["experts"][0])
    for start in range(0, result.numel(), CHUNK):
        end = min(start + CHUNK, result.numel())
        part = {
            key: [_slice(item, start, end) for item in value]
            if isinstance(value, list)
            else _slice(value, start, end)
            for key, value in flat.items()
        }
        value = _call(job, target, name, part | extras)
        if not isinstance(value, torch.Tensor) or value.shape != (end - start,):
            raise MethodError(
                f"{job.method.name}: {name!r}: an element method must return a tensor of "
                f"the shape it was given, {(end - start,)}"
            )
        result[start:end] = value
    return result.view(shape)


def _flatten(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.flatten()


def _slice(tensor: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if tensor is None else tensor[start:end]


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


def _checked(job: Job, name: str, value: Any) -> Any:
    """Shape, type and finiteness of what a method returned; static values are rounded."""
    method, info = job.method, job.first.info(name)
    wanted = {
        "static": torch.Tensor,
        "per_task": PerTask,
        "routed": (Routed, torch.Tensor),
    }
    if not isinstance(value, wanted[method.output]):  # type: ignore[arg-type]
        raise MethodError(
            f"{method.name} returned {type(value).__name__} for {name!r}; its declared "
            f"output is {method.output}"
        )
    if isinstance(value, PerTask):
        if len(value.codes) != len(job.experts):
            raise MethodError(
                f"{method.name} returned {len(value.codes)} codes for {len(job.experts)} experts"
            )
        _check_tensor(job, name, value.shared, info.shape)
        for code in value.codes:
            _check_parts(job, name, code)
        return value
    if isinstance(value, Routed):
        _check_parts(job, name, value.parts)
        tensor = _check_tensor(job, name, value.value, info.shape)
        return Routed(tensor, value.parts)
    return _check_tensor(job, name, value, info.shape)


def _check_parts(job: Job, name: str, parts: Mapping[str, Tensor]) -> None:
    """Codes and routing parts: simple names, finite numbers."""
    for part, tensor in parts.items():
        if "." in part:
            raise MethodError(
                f"{job.method.name}: part {part!r} of {name!r} has a dot in it"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise MethodError(
                f"{job.method.name} produced NaN or infinity in part {part!r} of {name!r}"
            )


def _check_tensor(
    job: Job, name: str, tensor: Tensor, shape: tuple[int, ...]
) -> Tensor:
    method = job.method
    if tuple(tensor.shape) != shape:
        raise MethodError(
            f"{method.name} returned {tuple(tensor.shape)} for {name!r}, which is {shape}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise MethodError(f"{method.name} produced NaN or infinity in {name!r}")
    dtype: torch.dtype = getattr(torch, job.first.info(name).dtype)
    if method.output == "per_task":
        return tensor
    rounded = tensor.detach().to(dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise MethodError(
            f"{method.name}: {name!r} does not fit {job.first.info(name).dtype}"
        )
    return rounded


def _copy(job: Job, name: str) -> Tensor:
    """A tensor outside the merge: integer buffers must agree, others come from the first."""
    value = job.first.read(name)
    if job.first.info(name).role == "buffer":
        for source in job.sources[1:]:
            if not torch.equal(value, source.read(name)):
                raise CheckpointError(
                    f"{name!r} holds whole numbers that differ between {job.first.label} "
                    f"and {source.label}; they cannot be merged"
                )
    job.report.copied.append(name)
    return value


def _run_model(job: Job, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    method = job.method
    merged = [
        name
        for name in job.first.names()
        if job.merged(job.first.info(name)) and name not in job.report.tied
    ]
    given: dict[str, Any] = {
        "experts": [
            {name: _read(expert, name) for name in merged} for expert in job.experts
        ]
    }
    if method.needs.base:
        base = job.base
        given["base"] = (
            None if base is None else {name: _read(base, name) for name in merged}
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
            yield name, _checked(job, name, result[twin])
        else:
            yield name, _copy(job, name)
