"""Which items of a cell are for choosing parameters, and which for the test. No torch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk_tasks_lmeval.jsonl import rows
from mtk_tasks_lmeval.spec import Source

if TYPE_CHECKING:
    from pathlib import Path

    from mtk_tasks_lmeval.spec import Cell, Spec


def part_of(cell: Cell, split: str) -> int:
    """1 for a validation that is a source of its own, else 0."""
    return int(split == "validation" and isinstance(cell.validation, Source))


def source_of(cell: Cell, part: int) -> Source:
    """Where the items of a part come from."""
    if part and isinstance(cell.validation, Source):
        return cell.validation
    return cell.source


def needed(cell: Cell) -> tuple[str, ...]:
    """The splits that a benchmark may ask for."""
    return ("test", "validation") if cell.validation else ("test",)


def places(cell: Cell, total: int, split: str, where: str) -> list[int]:
    """Places of a split's items in their source, which has ``total``.

    Raises:
        UsageError: there are none.
    """
    if split == "train":
        raise UsageError(f"{where}: a track from a file has no training items")
    everything = list(range(total))[: cell.limit]
    if isinstance(cell.validation, Source):
        chosen = everything
    else:
        aside = _set_aside(cell, len(everything), cell.validation)
        chosen = [p for p in everything if (p in aside) == (split == "validation")]
    if not chosen:
        raise UsageError(
            f"{where}: no items for {split}, of {len(everything)} in all\n"
            "Change validation, a share of the items, or give other items for it"
        )
    return chosen


def _set_aside(cell: Cell, total: int, share: float) -> frozenset[int]:
    """Places of the validation items: the same in all cells that share their items."""
    order = sorted(
        range(total),
        key=lambda place: hashlib.sha256(f"{cell.items}\0{place}".encode()).digest(),
    )
    least = 1 if share else 0
    return frozenset(order[: max(round(share * total), least)])


def check_data(spec: Spec) -> None:
    """Read every line of the JSONL files, and count the items.

    Raises:
        UsageError: a line is no item, or a split has none.
    """
    counts: dict[Path, int] = {}
    for cell in spec.cells:
        where = f"{spec.path}: cell {cell.name!r}"
        for split in needed(cell):
            file = source_of(cell, part_of(cell, split)).data
            if file is None:
                continue
            if file not in counts:
                counts[file] = len(rows(file, where))
            places(cell, counts[file], split, where)
