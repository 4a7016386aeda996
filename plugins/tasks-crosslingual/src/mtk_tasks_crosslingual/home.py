"""What must lie under the user's folder, the *root*, and what of it is there.

``ROOT/base`` is the model, ``ROOT/data`` the data sets; the rest is `mtk.roots`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mtk.roots import Part, model_part, part, sampled_hash
from mtk_tasks_crosslingual import checking
from mtk_tasks_crosslingual.cells import CELLS, HELD_IN, MULTITASK, SPLITS
from mtk_tasks_crosslingual.layouts import place
from mtk_tasks_crosslingual.sets import set_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mtk_tasks_crosslingual.cells import Cuts

NAME = "crosslingual-mt5"
BASE = "base"
_INDEX = "model.safetensors.index.json"


def parts(
    root: Path, made: Path, steps: int, cuts: Cuts, *, quick: bool = False
) -> list[Part]:
    """Everything that must be there, in the order in which it is to be got.

    Args:
        root: the user's folder.
        made: where the track keeps the models that it makes.
        steps: of a training run, at most.
        cuts: where splits end.
        quick: whether not to look into the data.
    """
    found = [_weights(root), *_data(root, cuts, quick=quick)]
    base = base_hash(root)
    lost = {p["name"] for p in found if not p["there"]}
    for name in (*HELD_IN, MULTITASK):
        needed = {BASE} | {
            f"{set_of(cell).folder}/{file}"
            for cell in (HELD_IN if name == MULTITASK else (name,))
            for file in checking.files_of(cell, ("train", "validation"))
        }
        found.append(
            model_part(
                made / name,
                name,
                kind=MULTITASK if name == MULTITASK else "expert",
                ready=not needed & lost,
                steps=steps,
                base=base,
            )
        )
    return found


def base_hash(root: Path, *more: str) -> str:
    """What tells the base's weights, and more of its files, from others."""
    try:
        files = [root / BASE / name for name in more]
        return sampled_hash([*files, *_shards(root / BASE)])
    except OSError:
        return ""


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


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
    shards = [file.name for file in _shards(folder)]
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
    return checking.weights_fault(_shards(folder), folder / "config.json")


def _data(root: Path, cuts: Cuts, *, quick: bool) -> Iterator[Part]:
    wanted: dict[tuple[str, str], list[str]] = {}
    for cell in CELLS:
        for file in checking.files_of(cell, SPLITS):
            wanted.setdefault((set_of(cell).folder, file), []).append(cell)
    for (folder, file), cells in wanted.items():
        where, fault = place(root, folder, file), ""
        todo = f"put {root / 'data' / folder / file}.jsonl there, or use --download"
        if where is not None and not quick:
            fault = checking.shortage(where, file, cells, cuts)
            todo = f"put a whole {where} there, or remove it and use --download"
        yield part(
            f"{folder}/{file}",
            "data",
            there=where is not None and not fault,
            note=fault or (where.name if where else "no file"),
            todo=todo,
        )
