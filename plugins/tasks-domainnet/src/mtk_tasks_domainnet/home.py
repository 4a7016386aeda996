"""Where a track's things lie, and which of them are there.

The user's folder, the *root*, holds data and weights; what the track makes lies under
``ROOT/mtk``. ``mtk tracks prepare`` notes the root in the cache, in ``root.json``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mtk.errors import CheckpointError, UsageError
from mtk.folders import check_manifest, new_folder, write_manifest
from mtk_tasks_domainnet import groups, lists
from mtk_tasks_domainnet.cells import MULTITASK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mtk_tasks_domainnet.cells import Grid
    from mtk_tasks_domainnet.fitting import Progress, Regime

    Report = Callable[[str, float], None]

ROOT_NAME = "root.json"
TRAINING = ".training.safetensors"
_SHOWN = 3


class Part(TypedDict):
    """One thing that must be there; see the protocol of ``mtk tracks prepare``."""

    name: str
    kind: str
    there: bool
    ready: bool
    note: str
    todo: str


def part(
    name: str,
    kind: str,
    *,
    there: bool,
    note: str = "",
    todo: str = "",
    ready: bool = False,
) -> Part:
    """A part; what is there needs nothing done, and is not made again."""
    return Part(
        name=name,
        kind=kind,
        there=there,
        ready=ready and not there,
        note=note,
        todo="" if there else todo,
    )


def known_root(cache: Path) -> Path | None:
    """The root that was noted, if it is still there."""
    try:
        root = Path(json.loads((cache / ROOT_NAME).read_text(encoding="utf-8"))["root"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return root if root.is_dir() else None


def need_root(cache: Path, track: str) -> Path:
    """The root, or an error that says what to do."""
    root = known_root(cache)
    if root is None:
        raise UsageError(
            f"{track} needs data and models that you bring\n"
            f"mtk tracks prepare {track} --root DIR says which, and notes the folder"
        )
    return root


def need_all(parts: Sequence[Part], track: str, root: Path) -> None:
    """Refuse to go on without everything."""
    lost = [p["name"] for p in parts if not p["there"]]
    if lost:
        more = ", ..." if len(lost) > _SHOWN else ""
        raise UsageError(
            f"{track}: {len(lost)} parts are missing: {', '.join(lost[:_SHOWN])}{more}\n"
            f"mtk tracks prepare {track} --root {root} says what to do"
        )


def lacking(parts: Sequence[Part] | None, track: str) -> list[str]:
    """What is missing in a few phrases; ``None`` where no root is known."""
    if parts is None:
        return [f"data and models of yours: mtk tracks prepare {track} --root DIR"]
    todo = [p["todo"] for p in parts if not p["there"]]
    if len(todo) < _SHOWN:
        return todo
    return [todo[0], f"{len(todo) - 1} more, as mtk tracks prepare {track} says"]


def files(name: str, folder: Path, wanted: Iterable[str], source: str) -> Part:
    """Weights: a folder with some files."""
    lost = [file for file in wanted if not (folder / file).is_file()]
    return part(
        name,
        "weights",
        there=not lost,
        note="there" if not lost else f"{folder.name} lacks {lost[0]}",
        todo=f"put {', '.join(lost)} of {source} into {folder}, or use --download",
    )


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
            found[0] = part(
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
        return part("groups", "data", there=False, note="no file", todo=todo)
    try:
        found = groups.read(root, grid)
    except UsageError as error:
        return part("groups", "data", there=False, note=str(error), todo=todo)
    note = f"{len(found.groups)} groups, {len(set(found.rows))} classes"
    return part("groups", "data", there=True, note=note)


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
    return part(
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
        return part(f"images/{domain}", "data", there=there, note=note, todo=todo)
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
    return part(f"images/{domain}", "data", there=not lost, note=note, todo=todo)


def needed(parts: Sequence[Part], grid: Grid, name: str) -> list[Part]:
    """What must be there to train one model: images of its own domain only."""
    own = set(grid.domains) if name == MULTITASK else {grid.parse(name)[0]}
    images = {f"images/{domain}" for domain in own}
    return [
        p
        for p in parts
        if p["kind"] == "weights"
        or p["name"] in ("groups", "lists", "package")
        or p["name"] in images
    ]


def made(root: Path, track: str, variant: str) -> Path:
    """Where a track keeps the models that it made."""
    return root / "mtk" / track / variant


def facts(track: str, name: str, regime: Regime, progress: Progress) -> dict[str, Any]:
    """What the manifest of a trained model says of its training."""
    return {
        "track": track,
        "made": name,
        "regime": asdict(regime),
        "steps": progress.step,
        "best_step": progress.best_step,
        "history": progress.history,
    }


def one_file(source: Path, usual: str) -> Path:
    """The safetensors file that a path means: itself, the usual one, or the only one."""
    if source.is_file():
        return source
    if (source / usual).is_file():
        return source / usual
    found = sorted(source.glob("*.safetensors"))
    if len(found) != 1:
        raise UsageError(f"{source} holds {len(found)} safetensors files, not one")
    return found[0]


def packages(names: Sequence[str], extra: str) -> Part:
    """Libraries that an extra of this distribution brings."""
    from importlib.util import find_spec

    lost = [name for name in names if find_spec(name) is None]
    return part(
        "package",
        "package",
        there=not lost,
        note="installed" if not lost else f"{', '.join(lost)} not installed",
        todo=f'pip install "mtk-tasks-domainnet[{extra}]"',
    )


def model_part(
    folder: Path, name: str, *, kind: str, ready: bool, steps: int = 0
) -> Part:
    """An expert, the multitask model or a judge: finished, begun or not."""
    from mtk_tasks_domainnet import fitting

    if whole(folder):
        return part(name, kind, there=True, note="there")
    done = (
        fitting.begun(training_state(folder)) if training_state(folder).is_file() else 0
    )
    note = f"begun, {done:,} of at most {steps:,} steps" if done else "not made"
    todo = "train it (without --dry-run), or --import-experts"
    return part(name, kind, there=False, note=note, todo=todo, ready=ready)


def training_state(folder: Path) -> Path:
    """The file of an unfinished training run."""
    return folder.with_name(folder.name + TRAINING)


def whole(folder: Path) -> bool:
    """Whether a folder that a track made is complete."""
    try:
        return folder.is_dir() and check_manifest(folder) is not None
    except CheckpointError:
        return False


def finish(folder: Path, fill: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Make a folder that appears whole; then remove what was left of its training."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not whole(folder):
        raise UsageError(
            f"{folder} is not what mtk wrote, or was changed\nRemove it, and it is made again"
        )
    with new_folder(folder, overwrite=True) as work:
        fill(work)
        write_manifest(work, {"mtk": facts})
    training_state(folder).unlink(missing_ok=True)
