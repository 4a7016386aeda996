"""Checks of the numbers that go into a method and come out of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import MethodError
from mtk.results import PerTask, Routed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtk.job import Job


def finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite.

    A sum keeps every NaN and infinity and costs a fraction of looking at each entry. It
    can also overflow, so that only a finite one is taken at its word.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if math.isfinite(float(tensor.sum(dtype=wide))):
        return True
    return bool(torch.isfinite(tensor).all())


def checked(job: Job, name: str, value: Any) -> Any:
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
        _check_shape(job, name, value.shared, info.shape)
        _check_finite(job, name, value.shared)
        for code in value.codes:
            _check_parts(job, name, code)
        return value
    if isinstance(value, Routed):
        _check_parts(job, name, value.parts)
        _check_shape(job, name, value.value, info.shape)
        return Routed(rounded(job, name, value.value), value.parts)
    _check_shape(job, name, value, info.shape)
    return rounded(job, name, value)


def rounded(job: Job, name: str, tensor: Tensor) -> Tensor:
    """The tensor, or a part of it, in the dtype of the result, if its numbers fit."""
    dtype: torch.dtype = getattr(torch, job.result(name).dtype)
    tensor = tensor.detach()
    if fits(tensor, dtype):
        return tensor.to(dtype)
    _check_finite(job, name, tensor)
    result = tensor.to(dtype)
    if dtype != tensor.dtype and not finite(result):
        raise MethodError(
            f"{job.method.name}: {name!r} does not fit {job.result(name).dtype}"
        )
    return result


def fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether all numbers are surely finite, and stay so in another dtype.

    Their sum of squares bounds each of them, and costs less than looking at each. False
    means that it is not known.
    """
    if not tensor.numel():
        return True
    if (
        tensor.dtype not in (torch.float32, torch.float64)
        or not dtype.is_floating_point
    ):
        return False
    flat = tensor.reshape(-1)
    return math.sqrt(float(torch.dot(flat, flat))) < torch.finfo(dtype).max


def _check_finite(job: Job, name: str, tensor: Tensor) -> None:
    if not finite(tensor):
        raise MethodError(f"{job.method.name} produced NaN or infinity in {name!r}")


def _check_shape(job: Job, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise MethodError(
            f"{job.method.name} returned {tuple(tensor.shape)} for {name!r}, which is "
            f"{shape}"
        )


def _check_parts(job: Job, name: str, parts: Mapping[str, Tensor]) -> None:
    """Codes and routing parts: simple names, finite numbers."""
    for part, tensor in parts.items():
        if "." in part:
            raise MethodError(
                f"{job.method.name}: part {part!r} of {name!r} has a dot in it"
            )
        if not finite(tensor):
            raise MethodError(
                f"{job.method.name} produced NaN or infinity in part {part!r} of {name!r}"
            )
