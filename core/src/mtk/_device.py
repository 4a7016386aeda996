"""Where a method's arithmetic happens, and how numbers get there and back."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def find_device(name: str) -> torch.device:
    """The device of that name, or an error before anything is read."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"there is no device {name!r}\nGive --device cpu or cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count or (device.index or 0) >= count:
            raise UsageError(
                f"the device {name!r} was asked for, but this machine (or this torch) "
                f"has {count or 'no'} CUDA device{'s' if count > 1 else ''}\n"
                "Leave --device out to merge on the CPU"
            )
    return device


class Lane(threading.local):
    """One thread's way to the device and back.

    On a GPU every thread has a stream and pinned staging memory of its own, so that the
    copies of one overlap with the arithmetic of another and the writing of a third. What
    is staged may be used again after :meth:`wait`, which :meth:`down` implies.

    Args:
        device: where methods compute.
        staged: copy through staging memory; by default only to a GPU.
    """

    def __init__(self, device: torch.device, *, staged: bool | None = None) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._staged = self._cuda if staged is None else staged
        self._buffers: dict[Any, Tensor] = {}
        self._stream: Any = None

    @contextmanager
    def context(self) -> Iterator[None]:
        """New tensors are made on the device, and work is queued in this lane."""
        if not self._cuda:
            yield
            return
        self._stream = self._stream or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream), torch.device(self.device):
            yield

    def buffer(self, key: Any, size: int, dtype: torch.dtype) -> Tensor:
        """Memory of the host for ``size`` entries, used again under the same key."""
        kept = self._buffers.get((key, dtype))
        if kept is None or kept.numel() < size:
            kept = torch.empty(size, dtype=dtype, device="cpu", pin_memory=self._cuda)
            self._buffers[key, dtype] = kept
        return kept[:size]

    def up(self, tensor: Tensor, key: Any) -> Tensor:
        """The tensor on the device."""
        if not self._staged:
            return tensor
        if self._cuda and not tensor.is_pinned():
            staging = self.buffer((key, "up"), tensor.numel(), tensor.dtype)
            staging.copy_(tensor.reshape(-1))
            tensor = staging.view(tensor.shape)
        return tensor.to(self.device, non_blocking=True, copy=True)

    def down(self, tensor: Tensor) -> Tensor:
        """The tensor on the host; complete, and valid until the next call."""
        if not self._staged:
            return tensor
        flat = tensor.reshape(-1)
        staging = self.buffer("down", flat.numel(), flat.dtype)
        staging.copy_(flat, non_blocking=True)
        self.wait()
        return staging.view(tensor.shape)

    def wait(self) -> None:
        """Until all that was queued in this lane is done."""
        if self._stream is not None:
            self._stream.synchronize()


def move(value: Any, device: torch.device) -> Any:
    """Tensors, and dicts and lists of them, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [move(item, device) for item in value]
    return value
