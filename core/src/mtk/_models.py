"""Methods of scope model: whole state dicts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk._calls import blamed
from mtk._checks import checked, rounded
from mtk._reading import compute_dtype, read_all
from mtk._scans import scanned_names
from mtk.errors import CheckpointError, MethodError
from mtk.job import holders, own_params
from mtk.loading import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from mtk._calls import Frame
    from mtk.adapters import Checkpoint
    from mtk.job import Job


def run_model(
    job: Job, names: Sequence[str], frame: Frame
) -> Iterator[tuple[str, Any]]:
    """Call the method once, and yield its tensors in the order of ``names``."""
    method, merged = job.method, scanned_names(job)

    def read(source: Checkpoint) -> dict[str, Tensor]:
        state = {}
        for name in merged:
            state[name] = read_all(source, name)
            frame.meter.add(stored_bytes(source, name))
        return state

    given: dict[str, Any] = {"experts": [read(expert) for expert in job.experts]}
    if method.needs.base:
        given["base"] = None if job.base is None else read(job.base)
    if method.needs.data != "none":
        given["tasks"] = list(job.tasks)
    if method.stochastic:
        given["random"] = frame.random(job.params["seed"], "", job.masks)
    states = [*given["experts"], given.get("base") or {}]
    inputs = [tensor for state in states for tensor in state.values()]
    versions = [tensor._version for tensor in inputs]
    job.report.passes += 1
    params = own_params(method, job.params)
    with (
        blamed(job),
        torch.enable_grad() if method.needs.gradients else torch.no_grad(),
    ):
        result = resolve(method.target)(**given, **params)
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
            job.report.copied.append(name)
            frame.meter.add(stored_bytes(job.first, name))
            yield name, _copied(job, name)


def stored_bytes(source: Checkpoint, name: str) -> int:
    """Bytes of a tensor in a checkpoint."""
    info = source.info(name)
    dtype: torch.dtype = getattr(torch, info.dtype)
    return torch.Size(info.shape).numel() * dtype.itemsize


def _copied(job: Job, name: str) -> Tensor:
    """What is not merged, as it is, in the dtype of the result."""
    tensor = job.first.read(name)
    if job.first.info(name).role == "buffer":
        for source in holders(job, name)[1:]:
            if not torch.equal(tensor, source.read(name)):
                raise CheckpointError(
                    f"{name!r} holds whole numbers that differ between "
                    f"{job.first.label} and {source.label}; they cannot be merged"
                )
    if tensor.dtype == getattr(torch, job.result(name).dtype):
        return tensor
    return rounded(job, name, tensor.to(compute_dtype(tensor.dtype)))
