"""Checkpoints the engine reads: safetensors files and state dicts in memory."""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from mtk.declare import TensorInfo
from mtk.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

# The module that owns the tensor, or the tensor itself: ``time_embedding.linear_1`` is a
# linear layer, and gpt-neox calls its head ``embed_out``.
_EMBEDDING = re.compile(
    r"(^|[._])(wte|wpe|shared|tokens?|[^.]*embed(?!_out)[^.]*)(\.weight)?$"
)
_NORM = re.compile(r"norm|(^|\.)ln|(^|\.)bn\d*\.", re.IGNORECASE)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def describe(name: str, shape: Sequence[int], dtype: torch.dtype) -> TensorInfo:
    """Infer role and layer from name, shape and dtype.

    Only what is applied as ``x @ W.T`` is called linear: 2-D tensors called ``*.weight``
    or ``*in_proj_weight`` that are no embeddings.
    """
    role, layer = "other", name
    last = name.rpartition(".")[2]
    if not dtype.is_floating_point:
        role = "buffer"
    elif _NORM.search(name) and len(shape) <= 1:
        role = "norm"
    elif last.endswith("bias") and len(shape) == 1:
        role, layer = "bias", name.removesuffix("bias") + "weight"
    elif len(shape) >= 3 and last == "weight":
        role = "conv"
    elif len(shape) == 2 and _EMBEDDING.search(name):
        role = "embedding"
    elif len(shape) == 2 and last in ("weight", "in_proj_weight"):
        role = "linear"
    return TensorInfo(
        name=name, shape=tuple(shape), dtype=dtype_name(dtype), role=role, layer=layer
    )


def settle_roles(infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Keep ``bias`` for the biases of linear layers; a convolution's is ``other``."""
    return {
        name: replace(info, role="other", layer=name)
        if info.role == "bias"
        and (info.layer not in infos or infos[info.layer].role != "linear")
        else info
        for name, info in infos.items()
    }


class SafetensorsCheckpoint:
    """One or several safetensors files, memory-mapped, read on request."""

    kind = "full"

    def __init__(self, files: Iterable[Path], label: str) -> None:
        self.label = label
        self._stack = ExitStack()
        self._where: dict[str, Any] = {}
        self._places: dict[str, _Place] = {}
        self._infos: dict[str, TensorInfo] = {}
        self._reader = _Reader()
        self.files = tuple(files)
        for file in self.files:
            self._add(file)
        if not self._infos:
            raise CheckpointError(f"{label}: no tensors in it")
        self._infos = settle_roles(self._infos)

    def _add(self, file: Path) -> None:
        places = _places(file)
        try:
            handle = self._stack.enter_context(safe_open(file, framework="pt"))
            names = list(handle.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: not a readable safetensors file: {first_line(error)}"
            ) from error
        for name in names:
            if name in self._where:
                raise CheckpointError(f"{self.label}: {name!r} stands in two files")
            part = handle.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{file}: {name!r} has dtype {part.get_dtype()}, which cannot be merged\n"
                    f"Convert it to one of {', '.join(_DTYPES)} first"
                )
            self._where[name] = handle
            self._infos[name] = describe(name, part.get_shape(), dtype)
        self._places |= {name: places[name] for name in names if name in places}

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        return self._infos[name]

    def read(self, name: str) -> Tensor:
        """One tensor, backed by the memory map."""
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat, read into memory of their own.

        Pages of a memory map count as the process's memory until they are dropped;
        what is read here is gone with the tensor.
        """
        tensor = torch.empty(end - start, dtype=getattr(torch, self._infos[name].dtype))
        self.fill(name, start, tensor)
        return tensor

    def fill(self, name: str, start: int, room: Tensor) -> None:
        """Read entries from ``start`` on into ``room``, until it is full."""
        if not room.numel():
            return
        place = self._places.get(name)
        if place is None:
            room.copy_(self.read(name).flatten()[start : start + room.numel()])
            return
        view = memoryview(room.view(torch.uint8).numpy().data)
        self._reader.fill(view, place, place.offset + start * room.element_size())


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's bytes begin, and how to know that the file is still the same."""

    file: Path
    offset: int
    state: tuple[int, ...]


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Opened:
    """An open file, closed when nobody uses it any more."""

    def __init__(self, file: Path) -> None:
        self.file, self.descriptor = file, os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


class _Reader(threading.local):
    """The file that a thread read last stays open; not all, for shards may be many."""

    def __init__(self) -> None:
        self._opened: _Opened | None = None

    def fill(self, view: memoryview, place: _Place, offset: int) -> None:
        """Read until ``view`` is full."""
        try:
            if self._opened is None or self._opened.file is not place.file:
                self._opened = None
                self._opened = _Opened(place.file)
            descriptor, done = self._opened.descriptor, 0
            same = _state(os.fstat(descriptor)) == place.state
            while same and done < len(view):
                count = os.preadv(descriptor, [view[done:]], offset + done)
                done, same = done + count, count > 0
        except OSError as error:
            raise CheckpointError(f"{place.file} could not be read: {error}") from error
        if not same:
            raise CheckpointError(f"{place.file} changed while it was being read")


def _places(file: Path) -> dict[str, _Place]:
    """Where the tensors of a file are, from its header.

    Refuses a name that stands twice; the usual reader lets the last of two equal names
    win, in silence.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            raise CheckpointError(f"{file}: a tensor name stands twice in the header")
        return seen

    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            if size > 100_000_000:
                return {}
            table = json.loads(handle.read(size), object_pairs_hook=unique)
            state = _state(os.fstat(handle.fileno()))
        return {
            name: _Place(file, 8 + size + entry["data_offsets"][0], state)
            for name, entry in table.items()
            if name != "__metadata__"
        }
    except (
        OSError,
        ValueError,
        RecursionError,
        TypeError,
        LookupError,
        AttributeError,
    ):
        return {}  # the reader itself says what is wrong


class StateDict:
    """A state dict in memory, seen as a checkpoint."""

    kind = "full"

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        if not tensors:
            raise CheckpointError(f"{label}: no tensors in it")
        self.label = label
        self._tensors = dict(tensors)
        self._infos = settle_roles(
            {
                name: describe(name, t.shape, t.dtype)
                for name, t in self._tensors.items()
            }
        )

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        return self._infos[name]

    def read(self, name: str) -> Tensor:
        """The tensor itself, detached."""
        return self._tensors[name].detach()
