"""Where a track's things lie, and which of them are there.

The user's folder, the *root*, holds data and weights; what the track makes lies under
``ROOT/mtk``. ``mtk tracks prepare`` notes the root in the cache, in ``root.json``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mtk.errors import CheckpointError, UsageError
from mtk.folders import check_manifest, new_folder, stale, write_manifest
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
    more = f" and {len(lost) - _SHOWN} more files" if len(lost) > _SHOWN else ""
    shown = ", ".join(lost[:_SHOWN]) + more
    return part(
        name,
        "weights",
        there=not lost,
        note="there" if not lost else f"{folder.name} lacks {lost[0]}",
        todo=f"put {shown} of {source} into {folder}, or use --download",
    )


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
    half = leftovers(folder)
    if half:
        note += f"; {half[0].name} was left half written and may be removed"
    todo = "run without --dry-run" if ready else "needs what is missing above"
    if kind == "expert":
        todo += ", or --import-experts DIR"
    return part(name, kind, there=False, note=note, todo=todo, ready=ready)


def leftovers(folder: Path) -> list[Path]:
    """What killed runs left half written; named, not deleted: one may be at work."""
    state = training_state(folder).name
    return [*stale(folder), *sorted(folder.parent.glob(f".{state}.*.partial"))]


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
