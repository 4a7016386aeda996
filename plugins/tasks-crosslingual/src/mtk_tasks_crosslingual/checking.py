"""Whether data and weights that are there will do, found out with as little as possible.

A file of data is read until there are enough items for every split that is cut from it,
so that a large one is not read to its end.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from mtk.errors import CheckpointError, UsageError, first_line
from mtk_tasks_crosslingual.cells import HELD_IN, SPLITS
from mtk_tasks_crosslingual.layouts import rows
from mtk_tasks_crosslingual.sets import NAMES, example_of, least, set_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mtk_tasks_crosslingual.cells import Cuts


def files_of(cell: str, splits: Sequence[str]) -> list[str]:
    """Files that some splits of a cell are cut from; other cells train on nothing."""
    chosen = [s for s in splits if s != "train" or cell in HELD_IN]
    files = set_of(cell).files
    return list(dict.fromkeys(files[split] for split in chosen if files[split]))


def shortage(where: Path, file: str, cells: Sequence[str], cuts: Cuts) -> str:
    """Why a file will not do for the cells that are cut from it; empty if it will."""
    try:
        stamp = _stamp(where)
        for cell in cells:
            splits = [s for s in SPLITS if file in files_of(cell, (s,))]
            needed = least(cell, splits, cuts)
            found = _items(where, cell, needed, stamp)
            if found < needed:
                return (
                    f"too few: {found:,} items, and {cell} needs {needed:,} for "
                    f"{' and '.join(splits)}"
                )
    except (OSError, UsageError) as error:
        return f"not readable: {first_line(error)}"
    return ""


def _stamp(where: Path) -> tuple[int, int]:
    status = (where / "state.json" if where.is_dir() else where).stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=256)
def _items(where: Path, cell: str, most: int, _stamp: tuple[int, int]) -> int:
    """Items of a cell in a file, counted as far as they are needed."""
    counted = 0
    for found in _found(where, cell):
        counted += found
        if counted == most:
            break
    return counted


def _found(where: Path, cell: str) -> Iterator[bool]:
    folder, language = set_of(cell).folder, cell.partition("-")[2]
    if folder == "tydiqa" and where.suffix == ".jsonl":
        # Whole pages of Wikipedia, in eleven languages: only lines of ours are decoded.
        word = f'"{NAMES[language]}"'.encode()
        with where.open("rb") as lines:
            yield from (word in line for line in lines)
        return
    for number, row in enumerate(rows(where)):
        yield example_of(cell, row, f"{folder}:{number}", where) is not None


def weights_fault(files: Sequence[Path], config: Path) -> str:
    """Why a model cannot be read, by its headers; empty if it can."""
    from mtk.checkpoint import SafetensorsCheckpoint

    file = config
    try:
        if not isinstance(json.loads(config.read_text(encoding="utf-8")), dict):
            return f"not readable: {config.name}: not a table"
        for file in files:
            SafetensorsCheckpoint([file], file.name)
    except (OSError, ValueError, RecursionError, CheckpointError) as error:
        why = first_line(error).removeprefix(f"{file}: ")
        return f"not readable: {file.name}: {why}"
    return ""
