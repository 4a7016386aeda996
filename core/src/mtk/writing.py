"""Writing safetensors: laid out beforehand, written once, visible only when complete."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from mtk.checkpoint import CODES
from mtk.errors import CheckpointError
from mtk.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from mtk.declare import TensorInfo


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
