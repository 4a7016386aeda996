"""Which of DomainNet's data are there: the groups, the lists and the images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk_tasks_domainnet import groups, home, lists

if TYPE_CHECKING:
    from pathlib import Path

    from mtk_tasks_domainnet.cells import Grid
    from mtk_tasks_domainnet.home import Part


def data_parts(root: Path, grid: Grid, *, quick: bool = False) -> list[Part]:
    """Groups, lists and images; ``quick`` looks at folders only, not at every image."""
    found = [_groups(root, grid), _lists(root, grid)]
    whole = found[1]["there"]
    found += [
        _images(root, domain, quick=quick or not whole) for domain in grid.domains
    ]
    if not quick and all(p["there"] for p in found[:2]):
        try:
            lists.check_classes(root, grid, groups.read(root, grid))
        except UsageError as error:
            found[0] = home.part(
                "groups",
                "data",
                there=False,
                note=str(error),
                todo="correct the groups",
            )
    return found


def _groups(root: Path, grid: Grid) -> Part:
    todo = (
        f"put src/data/dataset_reader/domainnet.py of the paper's repository, or a "
        f"{groups.JSON_NAME} of the same content, into {root}"
    )
    if groups.find(root) is None:
        return home.part("groups", "data", there=False, note="no file", todo=todo)
    try:
        found = groups.read(root, grid)
    except UsageError as error:
        return home.part("groups", "data", there=False, note=str(error), todo=todo)
    note = f"{len(found.groups)} groups, {len(set(found.rows))} classes"
    return home.part("groups", "data", there=True, note=note)


def _lists(root: Path, grid: Grid) -> Part:
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
    return home.part(
        "lists",
        "data",
        there=not wrong,
        note=f"{total:,} images are listed" if not wrong else wrong[0],
        todo=f"put DomainNet's official lists, DOMAIN_train.txt and DOMAIN_test.txt, into {root}",
    )


def _images(root: Path, domain: str, *, quick: bool) -> Part:
    todo = f"unpack DomainNet's {domain}.zip in {root}, so that {domain}/CLASS/FILE is there"
    folder = root / domain
    if not folder.is_dir() or quick:
        there = folder.is_dir()
        note = "a folder" if there else "no folder"
        return home.part(f"images/{domain}", "data", there=there, note=note, todo=todo)
    wanted = [
        image
        for name in lists.PARTS
        for image in lists.read(lists.file_of(root, domain, name), domain)
    ]
    present = {
        f"{domain}/{entry.name}/{file.name}"
        for entry in os.scandir(folder)
        if entry.is_dir()
        for file in os.scandir(entry.path)
    }
    lost = [image.path for image in wanted if image.path not in present]
    note = f"{len(wanted) - len(lost):,} of {len(wanted):,} images"
    if lost:
        note += f", not {lost[0]}"
    return home.part(f"images/{domain}", "data", there=not lost, note=note, todo=todo)
