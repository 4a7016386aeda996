"""What must lie under the user's folder, the *root*, and what of it is there.

``ROOT/base`` is the model, ``ROOT/data`` the data sets; the rest is `mtk.roots`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mtk.roots import Part, model_part, part
from mtk_tasks_crosslingual.cells import CELLS, HELD_IN, MULTITASK, SPLITS
from mtk_tasks_crosslingual.layouts import place
from mtk_tasks_crosslingual.sets import set_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NAME = "crosslingual-mt5"
BASE = "base"
_INDEX = "model.safetensors.index.json"


def parts(root: Path, made: Path, steps: int) -> list[Part]:
    """Everything that must be there, in the order in which it is to be got.

    Args:
        root: the user's folder.
        made: where the track keeps the models that it makes.
        steps: of a training run, at most.
    """
    found = [_weights(root), *_data(root)]
    lost = {p["name"] for p in found if not p["there"]}
    for name in (*HELD_IN, MULTITASK):
        needed = {BASE} | {
            f"{set_of(cell).folder}/{file}"
            for cell in (HELD_IN if name == MULTITASK else (name,))
            for file in _files(cell, ("train", "validation"))
        }
        kind = MULTITASK if name == MULTITASK else "expert"
        ready = not needed & lost
        found.append(model_part(made / name, name, kind=kind, ready=ready, steps=steps))
    return found


def _weights(root: Path) -> Part:
    folder = root / BASE
    lack = _lack(folder)
    return part(
        BASE,
        "weights",
        there=not lack,
        note=lack or "there",
        todo=f"put mT5-xl-lm-adapt (config, safetensors, tokenizer) into {folder}, "
        "or use --download",
    )


def _lack(folder: Path) -> str:
    """What a folder of transformers lacks; empty if it is whole."""
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    if not shards or not (folder / "config.json").is_file():
        return "no model"
    if (folder / _INDEX).is_file():
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            lost = sorted(set(index["weight_map"].values()) - set(shards))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return f"{_INDEX} cannot be read"
        if lost:
            return f"{lost[0]} is missing"
    tokens = ("tokenizer.json", "spiece.model")
    if not any((folder / name).is_file() for name in tokens):
        return "no tokenizer"
    return ""


def _data(root: Path) -> Iterator[Part]:
    seen = dict.fromkeys(
        (set_of(cell).folder, file) for cell in CELLS for file in _files(cell, SPLITS)
    )
    for folder, file in seen:
        where = place(root, folder, file)
        yield part(
            f"{folder}/{file}",
            "data",
            there=where is not None,
            note=where.name if where else "no file",
            todo=f"put {root / 'data' / folder / file}.jsonl there, or use --download",
        )


def _files(cell: str, splits: Sequence[str]) -> list[str]:
    """Files that some splits of a cell are cut from; other cells train on nothing."""
    wanted = splits if cell in HELD_IN else [s for s in splits if s != "train"]
    files = set_of(cell).files
    return list(dict.fromkeys(files[split] for split in wanted if files[split]))
