"""Which of DomainNet's data are there: the lists and the images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk.roots import part
from mtk_tasks_domainnet import lists
from mtk_tasks_domainnet.cells import CIFAR, MULTITASK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mtk.roots import Part
    from mtk_tasks_domainnet.cells import Grid


def data_parts(root: Path, grid: Grid, *, quick: bool = False) -> list[Part]:
    """Lists and images; ``quick`` looks at folders only, not at every image."""
    listed = _lists(root, grid, quick=quick)
    known = listed["there"]
    return [
        listed,
        *(_images(root, domain, quick=quick, listed=known) for domain in grid.domains),
    ]


def ability(folder: Path, grid: Grid, *, quick: bool) -> Part:
    """Images of base ability; ``quick`` counts folders only."""
    try:
        classes = [n for n in _names(folder, folders=True) if n[0] != "."]
        empty = [
            n for n in classes if not quick and not _names(folder / n, folders=False)
        ]
    except FileNotFoundError:
        classes, empty = [], []
    except OSError as error:
        return _unreadable(f"ability/{CIFAR}", folder, error)
    wanted, note = grid.ability, f"{len(classes):,} classes"
    there = len(classes) > 1 if wanted is None else len(classes) == wanted
    if not there and classes and wanted:
        note += f", not {wanted:,}"
    if empty:
        note += f", {min(empty)} has no images"
    return part(
        f"ability/{CIFAR}",
        "data",
        there=there and not empty,
        note=note,
        todo=f"put CIFAR-100's test images into {folder}/CLASS/",
    )


def _names(folder: Path, *, folders: bool) -> list[str]:
    """What is in a folder: its folders, or everything else."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir() == folders]


def _unreadable(name: str, folder: Path, error: OSError) -> Part:
    return part(
        name,
        "data",
        there=False,
        note=f"not readable: {error}",
        todo=f"give yourself the right to read {folder} and what is in it",
    )


def needed(parts: Sequence[Part], grid: Grid, name: str) -> list[Part]:
    """What must be there to train one model: images of its own domain only."""
    own = set(grid.domains) if name == MULTITASK else {grid.parse(name)[0]}
    names = {"lists", *(f"images/{domain}" for domain in own)}
    return [
        p for p in parts if p["kind"] in ("weights", "package") or p["name"] in names
    ]


def _lists(root: Path, grid: Grid, *, quick: bool) -> Part:
    total, wrong = 0, []
    for domain in grid.domains:
        for place, name in enumerate(lists.PARTS):
            lines = lists.count(root, domain, name)
            official = grid.lists.get(domain)
            file = lists.file_of(root, domain, name).name
            if lines is None:
                wrong.append(f"{file} is missing")
            elif official and lines != official[place]:
                wrong.append(f"{file} has {lines:,} lines, not {official[place]:,}")
            total += lines or 0
    note = f"{total:,} images are listed"
    if not quick and not wrong:
        try:
            lists.check_classes(root, grid)
            note += f", of {len(grid.classes)} classes"
        except UsageError as error:
            wrong.append(str(error))
    more = f", {len(wrong) - 1} more are missing or differ" if len(wrong) > 1 else ""
    return part(
        "lists",
        "data",
        there=not wrong,
        note=note if not wrong else wrong[0] + more,
        todo=f"put DomainNet's official lists, DOMAIN_train.txt and DOMAIN_test.txt, "
        f"into {root}, or use --download",
    )


def _images(root: Path, domain: str, *, quick: bool, listed: bool) -> Part:
    name, folder = f"images/{domain}", root / domain
    todo = f"unpack DomainNet's {domain}.zip in {root}, so that {domain}/CLASS/FILE is there"
    if not folder.is_dir() or quick or not listed:
        there = folder.is_dir()
        note = "a folder" if there else "no folder"
        if there and not quick:
            note += "; its images are unchecked without the lists"
        return part(name, "data", there=there, note=note, todo=todo)
    wanted = [
        image
        for half in lists.PARTS
        for image in lists.read(lists.file_of(root, domain, half), domain)
    ]
    try:
        present = {
            f"{domain}/{name}/{file}"
            for name in _names(folder, folders=True)
            for file in _names(folder / name, folders=False)
        }
    except OSError as error:
        return _unreadable(name, folder, error)
    lost = [image.path for image in wanted if image.path not in present]
    note = f"{len(wanted) - len(lost):,} of {len(wanted):,} images"
    if lost:
        note += f", not {lost[0]}"
    return part(name, "data", there=not lost, note=note, todo=todo)
