"""The weights of a model folder: one file or several with an index, per component."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import torch

from mtk.errors import CheckpointError
from mtk.folders import check_space
from mtk.writing import Output, open_output
from mtk.writing import layout as file_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.adapters import Layout
    from mtk.declare import TensorInfo

SHARD_SIZE = 5_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of weights: its path in the folder, and its tensors in their order."""

    file: str
    tensors: tuple[TensorInfo, ...]
    component: str = ""


def split(layout: Layout, component: str, name: str) -> bool:
    """Whether a tensor of the view belongs to a component."""
    head, slash, _ = name.partition("/")
    return (head if slash and head in layout.weights else "") == component


def stored(layout: Layout, infos: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The tensors that files hold, for those of the view."""
    result: dict[str, TensorInfo] = {}
    for info in infos:
        piece = layout.pieces.get(info.name)
        if piece is None:
            result[info.name] = info
        elif piece.stored not in result:
            whole = layout.stored[piece.stored]
            result[piece.stored] = replace(whole, name=piece.stored, dtype=info.dtype)
    return list(result.values())


def plan(
    layout: Layout, infos: Iterable[TensorInfo], shard_size: int | None = None
) -> list[Shard]:
    """Spread the tensors over files of at most ``shard_size`` bytes where they can."""
    most = shard_size or SHARD_SIZE
    whole, shards = stored(layout, infos), []
    for component, file in layout.weights.items():
        mine = [info for info in whole if split(layout, component, info.name)]
        if not mine:
            continue
        groups: list[list[TensorInfo]] = [[]]
        room = most
        for info in mine:
            size = size_of(info)
            if size > room and groups[-1]:
                groups.append([])
                room = most
            groups[-1].append(info)
            room -= size
        shards += [
            Shard(
                file=_numbered(file, number, len(groups)),
                tensors=tuple(file_order(group)),
                component=component,
            )
            for number, group in enumerate(groups, 1)
        ]
    placed = sum(len(shard.tensors) for shard in shards)
    if placed != len(whole):
        raise CheckpointError(
            f"{len(whole) - placed} tensors belong to no file of the layout"
        )
    return shards


def size_of(info: TensorInfo) -> int:
    """Bytes of one tensor."""
    dtype: torch.dtype = getattr(torch, info.dtype)
    return dtype.itemsize * torch.Size(info.shape).numel()


def _numbered(file: str, number: int, count: int) -> str:
    if count == 1:
        return file
    path = PurePosixPath(file)
    return str(path.with_name(f"{path.stem}-{number:05}-of-{count:05}{path.suffix}"))


def indexes(layout: Layout, shards: Sequence[Shard]) -> dict[str, bytes]:
    """Index files, for the components whose weights are in several files."""
    result = {}
    for component, file in layout.weights.items():
        mine = [shard for shard in shards if shard.component == component]
        if len(mine) < 2:
            continue
        where = {
            _bare(info.name, component): PurePosixPath(shard.file).name
            for shard in mine
            for info in shard.tensors
        }
        total = sum(size_of(info) for shard in mine for info in shard.tensors)
        table = {"metadata": {"total_size": total}, "weight_map": where}
        result[f"{file}.index.json"] = json.dumps(table, indent=2).encode()
    return result


def _bare(name: str, component: str) -> str:
    return name.removeprefix(f"{component}/") if component else name


class Weights:
    """All weight files of a folder, filled in any order by any thread."""

    def __init__(
        self, layout: Layout, outputs: Mapping[str, tuple[Output, str]]
    ) -> None:
        self._layout, self._outputs = layout, outputs

    def put(self, name: str, start: int, tensor: Tensor) -> None:
        """Write entries of ``name`` from number ``start`` on, counted flat."""
        piece = self._layout.pieces.get(name)
        if piece is not None:
            name, start = piece.stored, piece.start + start
        output, bare = self._outputs[name]
        output.put(bare, start, tensor)


@contextmanager
def open_weights(
    folder: Path,
    layout: Layout,
    shards: Sequence[Shard],
    metadata: Mapping[str, str],
) -> Iterator[Weights]:
    """Lay out all files; at the end every tensor must be there, and is synced."""
    with ExitStack() as stack:
        outputs: dict[str, tuple[Output, str]] = {}
        opened = []
        for shard in shards:
            place = folder / shard.file
            place.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            stack.callback(os.close, descriptor)
            bare = [
                replace(info, name=_bare(info.name, shard.component))
                for info in shard.tensors
            ]
            output = Output(descriptor, bare, metadata)
            opened.append((output, descriptor))
            for info, short in zip(shard.tensors, bare, strict=True):
                outputs[info.name] = output, short.name
        yield Weights(layout, outputs)
        for output, descriptor in opened:
            output.finish()
            os.fsync(descriptor)


def order(layout: Layout, shards: Sequence[Shard], names: Iterable[str]) -> list[str]:
    """Names of the view in the order of the files, for writing from front to back."""
    place = {
        info.name: number
        for number, info in enumerate(i for shard in shards for i in shard.tensors)
    }

    def key(name: str) -> tuple[int, int]:
        piece = layout.pieces.get(name)
        return (place[name], 0) if piece is None else (place[piece.stored], piece.start)

    return sorted(names, key=key)


def sole(layout: Layout) -> Layout:
    """The layout of one file that holds everything, under the names of the view."""
    return replace(layout, weights={"": "model.safetensors"}, files={})


def write_file(
    path: Path,
    layout: Layout,
    shards: Sequence[Shard],
    metadata: Mapping[str, str],
    fill: Callable[[Weights], None],
) -> None:
    """Write one file; it appears at the end, when every tensor was put into it."""
    tensors = file_order(info for shard in shards for info in shard.tensors)
    check_space(path, sum(map(size_of, tensors)))
    with open_output(path, tensors, metadata) as output:
        fill(Weights(layout, {info.name: (output, info.name) for info in tensors}))
