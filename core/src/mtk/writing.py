"""Writing safetensors: laid out beforehand, written once, visible only when complete."""

from __future__ import annotations

import json
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import torch

from mtk._libc import reserve, start_writing
from mtk.checkpoint import CODES
from mtk.errors import CheckpointError, UsageError
from mtk.files import replace_file, replacing, write_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from mtk.declare import TensorInfo


# Bytes of a piece that the system is told to bring to the disk at once, so that little is
# left to wait for at the end.
START_WRITING = 1 << 18


def layout(infos: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Order of the tensors in a file: widest numbers first, so all stay aligned."""
    return sorted(infos, key=lambda info: (-_width(info), info.name))


def _width(info: TensorInfo) -> int:
    dtype: torch.dtype = getattr(torch, info.dtype)
    return dtype.itemsize


def _header(infos: Iterable[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for info in infos:
        start, end = end, end + _width(info) * torch.Size(info.shape).numel()
        table[info.name] = {
            "dtype": CODES[getattr(torch, info.dtype)],
            "shape": list(info.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(
    path: Path,
    infos: Iterable[TensorInfo],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Stream ``tensors``, in the order of ``layout(infos)``, into one file."""
    ordered = list(infos)

    def chunks() -> Iterator[bytes | memoryview]:
        yield _header(ordered, metadata)
        for info, (name, tensor) in zip(ordered, tensors, strict=True):
            if name != info.name or tuple(tensor.shape) != info.shape:
                raise CheckpointError(
                    f"{path}: {name!r} came where {info.name!r} belongs"
                )
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            if flat.numel():
                yield memoryview(flat.view(torch.uint8).numpy().data)

    replace_file(path, chunks())


class Output:
    """A safetensors file whose tensors are put in any order, by any thread."""

    def __init__(
        self, descriptor: int, infos: Iterable[TensorInfo], metadata: Mapping[str, str]
    ) -> None:
        self._descriptor, self._lock = descriptor, Lock()
        ordered = list(infos)
        header = _header(ordered, metadata)
        end = len(header)
        self._places: dict[str, tuple[int, int]] = {}
        for info in ordered:
            self._places[info.name] = end, _width(info)
            end += _width(info) * torch.Size(info.shape).numel()
        self._missing = end - len(header)
        if not reserve(descriptor, end):
            raise UsageError(
                f"the result takes {end / 1e9:.3f} GB, and its disk has less than that "
                "free\nNothing was merged; make room, or choose another --output"
            )
        write_at(descriptor, memoryview(header), 0)

    def put(self, name: str, start: int, tensor: Tensor) -> None:
        """Write entries of ``name`` from number ``start`` on, counted flat."""
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        if not flat.numel():
            return
        begin, width = self._places[name]
        if flat.element_size() != width:
            raise CheckpointError(f"{name!r} came as {flat.dtype}")
        data = memoryview(flat.view(torch.uint8).numpy().data)
        write_at(self._descriptor, data, begin + start * width)
        if len(data) >= START_WRITING:
            start_writing(self._descriptor, begin + start * width, len(data))
        with self._lock:
            self._missing -= len(data)

    def finish(self) -> None:
        """Refuse a file in which something was never written."""
        if self._missing:
            raise CheckpointError(f"{self._missing} bytes of the result are missing")


@contextmanager
def open_output(
    path: Path, infos: Iterable[TensorInfo], metadata: Mapping[str, str]
) -> Iterator[Output]:
    """Lay a file out; it appears at the end, when every tensor was put into it."""
    with replacing(path) as descriptor:
        output = Output(descriptor, infos, metadata)
        yield output
        output.finish()
