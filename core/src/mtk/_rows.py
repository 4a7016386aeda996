"""A model with its embeddings' rows in the order of a merged vocabulary, read lazily."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.declare import TensorInfo
    from mtk.vocabulary import Plan

MISSING = -1
# Rows that follow each other in a file are read at once. Where more runs than this make
# up a request, the whole memory-mapped tensor is indexed instead.
_RUNS = 64


class Rows:
    """A model with the rows of a plan; its other tensors are as they are.

    Args:
        sources: all models of the plan, in its order.
        index: of the model to present.
        plan: says what its rows are.
    """

    def __init__(self, sources: Sequence[Checkpoint], index: int, plan: Plan) -> None:
        self._sources, self._index, self._plan = list(sources), index, plan
        source = sources[index]
        self.label, self.kind = source.label, source.kind
        if all(hasattr(each, "part") for each in sources):
            self.part: Callable[[str, int, int], Tensor] = self._part

    def names(self) -> Sequence[str]:
        """Tensor names, sorted."""
        return self._sources[self._index].names()

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        info = self._sources[self._index].info(name)
        if name not in self._plan.tensors:
            return info
        return replace(info, shape=(self._plan.rows, *info.shape[1:]))

    def read(self, name: str) -> Tensor:
        """A tensor; float32 where rows are means of several models' rows."""
        if name not in self._plan.tensors:
            return self._sources[self._index].read(name)
        rows = self._block(name, 0, self._plan.rows)
        return rows.view(self.info(name).shape)

    def settle(self) -> None:
        """Let the model settle the roles of its tensors, if it can."""
        settle = getattr(self._sources[self._index], "settle", None)
        if settle is not None:
            settle()

    def _part(self, name: str, start: int, end: int) -> Tensor:
        source: Any = self._sources[self._index]
        if name not in self._plan.tensors or start == end:
            unchanged: Tensor = source.part(name, start, end)
            return unchanged
        width = _width(self.info(name))
        first, last = start // width, -(-end // width)
        own = self._plan.maps[self._index][first:last]
        row = int(own[0])
        if row != MISSING and torch.equal(own, torch.arange(row, row + len(own))):
            # The usual case: rows that follow each other in the file as well.
            shift = (row - first) * width
            moved: Tensor = source.part(name, start + shift, end + shift)
            return moved
        block = self._block(name, first, last).view(-1)
        return block[start - first * width : end - first * width]

    def _block(self, name: str, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of the result, (rows, width)."""
        own = self._plan.maps[self._index][first:last]
        block = self._take(self._index, name, own)
        for holders, rows in self._gaps(own, first).items():
            numbers = torch.tensor(rows)
            found = [
                self._take(i, name, self._plan.maps[i][numbers + first])
                for i in holders
            ]
            if len(found) == 1:
                block[numbers] = found[0].to(block.dtype)
                continue
            wide = torch.promote_types(block.dtype, torch.float32)
            mean = torch.stack([each.to(wide) for each in found]).mean(dim=0)
            block = block.to(wide)
            block[numbers] = mean
        return block

    def _gaps(self, own: Tensor, first: int) -> dict[tuple[int, ...], list[int]]:
        """Models that fill a gap -> the rows they fill, counted from ``first``."""
        rows = (own == MISSING).nonzero().flatten()
        if not len(rows):
            return {}
        there = torch.stack([found[rows + first] for found in self._plan.maps])
        gaps: dict[tuple[int, ...], list[int]] = {}
        base = self._plan.base
        for row, owns in zip(rows.tolist(), (there != MISSING).T.tolist(), strict=True):
            holders = tuple(i for i, owned in enumerate(owns) if owned)
            if base is not None and base in holders:
                holders = (base,)
            gaps.setdefault(holders, []).append(row)
        return gaps

    def _take(self, index: int, name: str, rows: Tensor) -> Tensor:
        """Rows of one model, (len(rows), width); zero where it has none."""
        source = self._sources[index]
        info = source.info(name)
        width = _width(info)
        there = (rows != MISSING).nonzero().flatten()
        runs = _runs(there.tolist(), rows[there].tolist())
        if not hasattr(source, "part") or len(runs) > _RUNS:
            whole = source.read(name).reshape(info.shape[0], width)
            block = whole.new_zeros(len(rows), width)
            block[there] = whole[rows[there]]
            return block
        parts = [
            (place, source.part(name, row * width, (row + count) * width))
            for place, row, count in runs
        ]
        dtype = parts[0][1].dtype if parts else getattr(torch, info.dtype)
        block = torch.zeros(len(rows), width, dtype=dtype)
        for place, part in parts:
            block.view(-1)[place * width : place * width + len(part)] = part
        return block


def _width(info: TensorInfo) -> int:
    return torch.Size(info.shape[1:]).numel()


def _runs(places: Sequence[int], rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """(place, row, count) of stretches in which both go up by one."""
    runs: list[tuple[int, int, int]] = []
    for place, row in zip(places, rows, strict=True):
        if runs and (place, row) == (runs[-1][0] + runs[-1][2], sum(runs[-1][1:])):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((place, row, 1))
    return runs
