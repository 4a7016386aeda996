"""The view of single experts: every projection of every expert is a tensor of its own.

A tensor of the view is a stored tensor, or a part of one that is contiguous in it, so it
can be read and written in pieces. From a fused ``gate_up_proj`` of shape (E, 2I, d), gate
rows first, these are a gate and an up projection (I, d) for each expert. In a transposed
one, (E, d, 2I), gate and up are not contiguous; there the piece is what belongs to one
expert, ``experts.E.gate_up_proj`` (d, 2I).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from mtk.checkpoint import describe, settle_roles
from mtk.errors import CheckpointError
from mtk_adapters_moe import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from mtk.checkpoint import SafetensorsCheckpoint
    from mtk.declare import TensorInfo

Shape = tuple[int, ...]
# Far above any model; what a file or a configuration claims is looped over.
MOST_EXPERTS = 100_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the view: ``shape`` entries of a stored one, from ``start`` on."""

    stored: str
    start: int
    shape: Shape


class ExpertView:
    """A mixture of experts, expert by expert. See the module's text."""

    kind = "moe"

    def __init__(
        self, source: SafetensorsCheckpoint, count: int, files: Iterable[Path] = ()
    ) -> None:
        self.label, self.source = source.label, source
        self.files = tuple(files)
        if count > MOST_EXPERTS:
            raise CheckpointError(
                f"{self.label}: the configuration says {count} experts; at most "
                f"{MOST_EXPERTS} are taken"
            )
        self.entries = dict(_entries(source, count))
        infos = {
            name: _info(source, name, entry) for name, entry in self.entries.items()
        }
        self._infos = settle_roles(infos)

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        return self._infos[name]

    def read(self, name: str) -> Tensor:
        """One tensor, backed by the memory map of the file."""
        entry = self.entries[name]
        size = torch.Size(entry.shape).numel()
        flat = self.source.read(entry.stored).reshape(-1)
        return flat[entry.start : entry.start + size].view(entry.shape)

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat, in memory of their own."""
        entry = self.entries[name]
        return self.source.part(entry.stored, entry.start + start, entry.start + end)


def _info(source: SafetensorsCheckpoint, name: str, entry: Entry) -> TensorInfo:
    """Shared experts are linear layers, though "shared" is a common name of embeddings."""
    dtype: torch.dtype = getattr(torch, source.info(entry.stored).dtype)
    info = describe(name, entry.shape, dtype)
    if info.role == "embedding" and ".shared_expert" in name:
        return replace(info, role="linear")
    return info


def _entries(source: SafetensorsCheckpoint, count: int) -> Iterator[tuple[str, Entry]]:
    """All tensors of the view; none has two names, and every stored entry has one."""
    places = {name: names.place(name) for name in source.names()}
    blocks = {place.block for place in places.values() if place is not None}
    found: dict[str, Entry] = {}
    experts: dict[str, dict[str, names.Place]] = {block: {} for block in blocks}
    for name, place in places.items():
        if place is not None:
            experts[place.block][name] = place
            continue
        plain = _plain_name(name, blocks)
        _add(found, source, plain, Entry(name, 0, source.info(name).shape))
    for block, members in experts.items():
        fused = {p.expert is None for p in members.values()}
        if len(fused) > 1:
            raise CheckpointError(
                f"{source.label}: {block!r} has both fused and separate experts"
            )
        split = _fused if fused == {True} else _separate
        for name, entry in split(source, block, members, count):
            _add(found, source, name, entry)
    yield from found.items()


def _add(
    found: dict[str, Entry], source: SafetensorsCheckpoint, name: str, entry: Entry
) -> None:
    if name in found:
        raise CheckpointError(
            f"{source.label}: {entry.stored!r} and {found[name].stored!r} would both be "
            f"called {name!r}"
        )
    found[name] = entry


def _plain_name(name: str, blocks: set[str]) -> str:
    """Routers and whatever else a block holds, under its name in the view."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        block = ".".join(parts[:cut])
        if block in blocks:
            tail = names.canonical_tail(".".join(parts[cut:]))
            return f"{names.canonical_block(block)}.{tail}"
    return name


def _separate(
    source: SafetensorsCheckpoint,
    block: str,
    members: Mapping[str, names.Place],
    count: int,
) -> Iterator[tuple[str, Entry]]:
    numbers = Counter(place.expert for place in members.values())
    _check_count(source, block, {n for n in numbers if n is not None}, count)
    shapes: dict[str, tuple[str, Shape]] = {}
    for name, place in members.items():
        part = f"{place.part}.{'bias' if place.bias else 'weight'}"
        shape = source.info(name).shape
        first, expected = shapes.setdefault(part, (name, shape))
        if shape != expected:
            raise CheckpointError(
                f"{source.label}: {name!r} is {shape}, but {first!r} is {expected}"
            )
        view = f"{names.canonical_block(block)}.experts.{place.expert}.{part}"
        yield view, Entry(name, 0, shape)
    for number, have in numbers.items():
        if have != len(shapes):
            raise CheckpointError(
                f"{source.label}: expert {number} of {block!r} has {have} tensors, "
                f"others {len(shapes)} ({', '.join(sorted(shapes))})"
            )
    gate, up, down = (
        shapes.get(f"{part}.weight", ("", ()))[1]
        for part in ("gate_proj", "up_proj", "down_proj")
    )
    if len(gate) != 2 or gate != up or down != gate[::-1]:
        raise CheckpointError(
            f"{source.label}: the experts of {block!r} do not fit together: gate {gate}, "
            f"up {up}, down {down}"
        )


def _check_count(
    source: SafetensorsCheckpoint, block: str, numbers: set[int], count: int
) -> None:
    if len(numbers) != count or max(numbers) != count - 1:
        raise CheckpointError(
            f"{source.label}: {block!r} holds {len(numbers)} experts, numbered "
            f"{min(numbers)} to {max(numbers)}; the configuration says {count}"
        )


def _fused(
    source: SafetensorsCheckpoint,
    block: str,
    members: Mapping[str, names.Place],
    count: int,
) -> Iterator[tuple[str, Entry]]:
    weights = {p.part: source.info(n).shape for n, p in members.items() if not p.bias}
    transposed = _is_transposed(source, block, weights, count)
    for name, place in members.items():
        shape = source.info(name).shape
        if len(shape) != (2 if place.bias else 3) or shape[0] != count:
            raise CheckpointError(
                f"{source.label}: {name!r} is {shape}; the configuration says {count} "
                "experts, which is the first dimension"
            )
        size = torch.Size(shape[1:]).numel()
        tail = "bias" if place.bias else "weight"
        halves = ("gate_proj", "up_proj")
        if transposed:
            pieces = {f"{place.part}{'_bias' if place.bias else ''}": shape[1:]}
        elif place.part == "gate_up_proj":
            pieces = {f"{h}.{tail}": (shape[1] // 2, *shape[2:]) for h in halves}
        else:
            pieces = {f"{place.part}.{tail}": shape[1:]}
        for expert in range(count):
            start = expert * size
            for part, piece in pieces.items():
                view = f"{names.canonical_block(block)}.experts.{expert}.{part}"
                yield view, Entry(name, start, piece)
                start += torch.Size(piece).numel()


def _is_transposed(
    source: SafetensorsCheckpoint,
    block: str,
    weights: Mapping[str, Shape],
    count: int,
) -> bool:
    """Whether fused weights are (E, d_in, d_out). Both cannot fit, whatever d and I."""
    both, down = weights.get("gate_up_proj", ()), weights.get("down_proj", ())
    if len(both) == 3 and len(down) == 3 and both[0] == down[0] == count:
        (a, b), (c, d) = both[1:], down[1:]
        if a == 2 * d and b == c:
            return False
        if b == 2 * c and a == d:
            return True
    raise CheckpointError(
        f"{source.label}: the fused experts of {block!r} do not fit together: gate_up_proj "
        f"{both}, down_proj {down}; {count} experts configured"
    )
