"""What must lie under the user's folder, the *root*, and what of it is there.

``ROOT/base`` is the model, ``ROOT/data`` the data sets, and what the track makes lies under
``ROOT/mtk``. ``mtk tracks prepare`` notes the root in the cache, in ``root.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mtk.errors import CheckpointError, UsageError
from mtk.folders import check_manifest
from mtk_tasks_crosslingual.cells import CELLS, HELD_IN, MULTITASK
from mtk_tasks_crosslingual.sets import place, set_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NAME = "crosslingual-mt5"
BASE = "base"
_TRAINING = ".training.safetensors"
_SHOWN = 3


class Part(TypedDict):
    """One thing that must be there; see the protocol of ``mtk tracks prepare``."""

    name: str
    kind: str
    there: bool
    ready: bool
    note: str
    todo: str


def known_root(cache: Path) -> Path | None:
    """The root that was noted, if it is still there."""
    try:
        text = (cache / "root.json").read_text(encoding="utf-8")
        root = Path(json.loads(text)["root"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return root if root.is_dir() else None


def need_root(cache: Path) -> Path:
    """The root, or an error that says what to do."""
    root = known_root(cache)
    if root is None:
        raise UsageError(
            f"{NAME} needs data and models that you bring\n"
            f"mtk tracks prepare {NAME} --root DIR says which, and notes the folder"
        )
    return root


def need_all(found: Sequence[Part], root: Path) -> None:
    """Refuse to go on without everything."""
    lost = [part["name"] for part in found if not part["there"]]
    if lost:
        more = ", ..." if len(lost) > _SHOWN else ""
        raise UsageError(
            f"{NAME}: {len(lost)} parts are missing: {', '.join(lost[:_SHOWN])}{more}\n"
            f"mtk tracks prepare {NAME} --root {root} says what to do"
        )


def lacking(found: Sequence[Part] | None) -> list[str]:
    """What is missing in a few phrases; None where no root is known."""
    if found is None:
        return [f"data and models of yours: mtk tracks prepare {NAME} --root DIR"]
    todo = [part["todo"] for part in found if not part["there"]]
    if len(todo) < _SHOWN:
        return todo
    return [todo[0], f"{len(todo) - 1} more, as mtk tracks prepare {NAME} says"]


def parts(root: Path, made: Path, steps: int) -> list[Part]:
    """Everything that must be there, in the order in which it is to be got."""
    found = [_weights(root), *_data(root)]
    lost = {part["name"] for part in found if not part["there"]}
    for name in (*HELD_IN, MULTITASK):
        needed = {BASE} | {
            f"{set_of(cell).folder}/{file}"
            for cell in (HELD_IN if name == MULTITASK else (name,))
            for file in _files(cell, ("train", "validation"))
        }
        found.append(_model(made / name, name, ready=not needed & lost, steps=steps))
    return found


def _weights(root: Path) -> Part:
    folder = root / BASE
    whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    tokens = any(
        (folder / name).is_file() for name in ("tokenizer.json", "spiece.model")
    )
    return Part(
        name=BASE,
        kind="weights",
        there=whole and tokens,
        ready=False,
        note="there" if whole and tokens else "no tokenizer" if whole else "no model",
        todo=""
        if whole and tokens
        else f"put mT5-xl-lm-adapt (config, safetensors, tokenizer) into {folder}",
    )


def _data(root: Path) -> Iterator[Part]:
    seen = dict.fromkeys(
        (set_of(cell).folder, file)
        for cell in CELLS
        for file in _files(cell, ("train", "validation", "test"))
    )
    for folder, file in seen:
        where = place(root, folder, file)
        yield Part(
            name=f"{folder}/{file}",
            kind="data",
            there=where is not None,
            ready=False,
            note=where.name if where else "no file",
            todo=""
            if where
            else f"put {root / 'data' / folder / file}.jsonl there, or use --download",
        )


def _files(cell: str, splits: Sequence[str]) -> list[str]:
    """Files that some splits of a cell are cut from; other cells train on nothing."""
    wanted = splits if cell in HELD_IN else [s for s in splits if s != "train"]
    files = set_of(cell).files
    return list(dict.fromkeys(files[split] for split in wanted if files[split]))


def _model(folder: Path, name: str, *, ready: bool, steps: int) -> Part:
    from mtk_tasks_crosslingual import fitting

    there = is_whole(folder)
    state = training_state(folder)
    done = fitting.begun(state) if state.is_file() else 0
    begun = f"begun, {done:,} of at most {steps:,} steps" if done else "not made"
    return Part(
        name=name,
        kind=MULTITASK if name == MULTITASK else "expert",
        there=there,
        ready=ready and not there,
        note="there" if there else begun,
        todo="" if there else "train it (without --dry-run), or --import-experts",
    )


def training_state(folder: Path) -> Path:
    """The file of an unfinished training run."""
    return folder.with_name(folder.name + _TRAINING)


def is_whole(folder: Path) -> bool:
    """Whether a folder that the track made is complete."""
    try:
        return folder.is_dir() and check_manifest(folder) is not None
    except CheckpointError:
        return False
