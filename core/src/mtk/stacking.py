"""Layers stacked into a new model: slabs of several models, on top of each other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk.layers import depths, only_stack, place
from mtk.views import Renamed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mtk.adapters import Checkpoint
    from mtk.assembly import Opened
    from mtk.recipes import Slab


def stacked(slabs: Sequence[tuple[Slab, Opened]]) -> Iterable[tuple[Slab, Opened]]:
    """Each slab's models, under the names that its layers have in the result."""
    start = 0
    for number, (slab, models) in enumerate(slabs):
        ends = number == 0, number == len(slabs) - 1
        depth = {end - begin for _, begin, end in slab.sources}
        if len(depth) != 1 or min(depth) < 1:
            raise UsageError(f"{slab.where}: all sources of a slab need as many layers")
        ranges = [begin for _, begin, _ in slab.sources]
        count = depth.pop()
        experts = [
            _cut(model, begin, count, start, ends, slab.where)
            for model, begin in zip(models.experts, ranges, strict=True)
        ]
        base = models.base
        if base is not None:
            begin, end = slab.base_range or slab.sources[0][1:]
            if end - begin != count:
                raise UsageError(f"{slab.where}: the base needs {count} layers as well")
            base = _cut(base, begin, count, start, ends, slab.where)
        yield slab, replace(models, experts=experts, base=base)
        start += count


def _cut(
    model: Checkpoint,
    begin: int,
    count: int,
    start: int,
    ends: tuple[bool, bool],
    where: str,
) -> Checkpoint:
    """``count`` layers from ``begin`` on, called ``start`` and so on; ends of the model.

    The first slab brings the embeddings, the last one everything else outside layers.
    """
    names = list(model.names())
    stack = only_stack(names, model.label)
    depth = depths(names)[stack]
    if begin + count > depth:
        raise UsageError(
            f"{where}: {model.label} has layers 0 to {depth - 1}; {begin} to "
            f"{begin + count - 1} are asked for"
        )
    mapping: dict[str, str] = {}
    for name in names:
        found = place(name)
        if found is None:
            early = model.info(name).role == "embedding"
            if ends[0] if early else ends[1]:
                mapping[name] = name
        elif begin <= found.layer < begin + count:
            mapping[found.at(found.layer - begin + start)] = name
    cut: Checkpoint = Renamed(model, mapping)
    return cut
