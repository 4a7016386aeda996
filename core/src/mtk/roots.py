"""Tracks whose data and weights are the user's to bring, in a folder called the *root*.

``mtk tracks prepare NAME --root DIR`` notes the root in the track's cache. What the track
makes itself lies under ``ROOT/mtk``. The members of a live track that the command asks for
are those of :class:`mtk.tracks.LiveTrack`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mtk.errors import CheckpointError, UsageError
from mtk.files import open_plain, replace_file
from mtk.folders import check_manifest, new_folder, stale, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_NOTED = "root.json"
_TRAINING = ".training.safetensors"
_SHOWN = 3
_SAMPLES, _SAMPLE = 64, 1 << 16


class Part(TypedDict):
    """One thing that must be there.

    Attributes:
        name: unique; an expert has the name of its cell.
        kind: ``package``, ``weights``, ``data``, ``judge``, ``expert`` or ``multitask``.
        there: whether it is.
        ready: it is not there, but the track can make it now.
        note: what was found.
        todo: what to do; empty if it is there.
    """

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


def package_part(names: Sequence[str], install: str) -> Part:
    """Libraries that are not installed with every track; ``install`` is pip's argument."""
    from importlib.util import find_spec

    lost = [name for name in names if find_spec(name) is None]
    return part(
        "package",
        "package",
        there=not lost,
        note="installed" if not lost else f"{', '.join(lost)} not installed",
        todo=f'pip install "{install}"',
    )


def model_part(
    folder: Path, name: str, *, kind: str, ready: bool, steps: int = 0, base: str = ""
) -> Part:
    """An expert, the multitask model or a judge: finished, begun or not.

    Args:
        folder: where it belongs.
        name: of the part.
        kind: of the part.
        ready: whether all that its training needs is there.
        steps: how many it takes at most.
        base: hash of the base as it is now (`sampled_hash`), if that is there.
    """
    if is_made(folder):
        told = made_from(folder)
        if base and told and told != base:
            note, todo = (
                "made from another base",
                f"remove {folder}, or bring back the base",
            )
            return part(name, kind, there=False, note=note, todo=todo)
        return part(name, kind, there=True, note="there")
    state, note = training_state(folder), "not made"
    if state.is_file():
        from mtk.training import begun

        note = f"begun, {begun(state):,} of at most {steps:,} steps"
    half = leftovers(folder)
    if half:
        note += f"; {half[0].name} was left half written and may be removed"
    todo = "run without --dry-run" if ready else "needs what is missing above"
    if kind == "expert":
        todo += ", or --import-experts DIR"
    return part(name, kind, there=False, note=note, todo=todo, ready=ready)


def note_root(cache: Path, root: Path) -> None:
    """Remember where data and weights of a track are."""
    cache.mkdir(parents=True, exist_ok=True)
    replace_file(cache / _NOTED, [json.dumps({"root": str(root)}).encode()])


def known_root(cache: Path) -> Path | None:
    """The root that was noted, if it is still there."""
    try:
        root = Path(json.loads((cache / _NOTED).read_text(encoding="utf-8"))["root"])
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


def need_all(parts: Sequence[Part], track: str, root: Path, options: str = "") -> None:
    """Refuse to go on without everything; ``options`` ends the command to be run."""
    lost = [p["name"] for p in parts if not p["there"]]
    if lost:
        more = ", ..." if len(lost) > _SHOWN else ""
        raise UsageError(
            f"{track}: {len(lost)} parts are missing: {', '.join(lost[:_SHOWN])}{more}\n"
            f"mtk tracks prepare {track} --root {root}{options} says what to do"
        )


def lacking(parts: Sequence[Part] | None, track: str, options: str = "") -> list[str]:
    """What is missing in a few phrases; ``None`` where no root is known."""
    if parts is None:
        command = f"mtk tracks prepare {track} --root DIR{options}"
        return [f"data and models of yours: {command}"]
    todo = [p["todo"] for p in parts if not p["there"]]
    if len(todo) < _SHOWN:
        return todo
    command = f"mtk tracks prepare {track} --root DIR{options}"
    return [todo[0], f"{len(todo) - 1} more, as {command} says"]


def words(seed: int, options: Mapping[str, object], usual: Mapping[str, object]) -> str:
    """The options of a command that chooses the same models: `` --seed 1 --option a=b``."""
    chosen = {k: v for k, v in options.items() if v != usual.get(k)}
    more = [
        f" --option {key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in sorted(chosen.items())
    ]
    return "".join([f" --seed {seed}" if seed else "", *more])


def made(root: Path, track: str, seed: int, name: str) -> Path:
    """Where a track keeps a model that it made, with names that cannot collide."""
    return root / "mtk" / track / f"seed{seed}" / name


def is_made(folder: Path) -> bool:
    """Whether a folder that a track made is complete; sizes only, weights may be large."""
    try:
        return folder.is_dir() and check_manifest(folder) is not None
    except CheckpointError:
        return False


def made_from(folder: Path) -> str:
    """What `finish` was told of the base that a model was made from; empty if nothing."""
    manifest = check_manifest(folder) or {}
    facts = manifest.get("mtk")
    return str(facts.get("base", "")) if isinstance(facts, dict) else ""


def sampled_hash(files: Iterable[Path]) -> str:
    """Hash of the sizes of files and of some megabytes of them, spread evenly.

    Tells models apart whose weights differ throughout, in little time however large they
    are. It does not find a change of single numbers.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with open_plain(file) as handle:
            for place in range(_SAMPLES):
                handle.seek(place * size // _SAMPLES)
                digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()[:16]


def training_state(folder: Path) -> Path:
    """The file of an unfinished training run, beside the folder of its result."""
    return folder.with_name(folder.name + _TRAINING)


def leftovers(folder: Path) -> list[Path]:
    """What killed runs left half written; named, not deleted: one may be at work."""
    state = training_state(folder).name
    return [*stale(folder), *sorted(folder.parent.glob(f".{state}.*.partial"))]


def finish(
    folder: Path, fill: Callable[[Path], object], facts: Mapping[str, Any]
) -> None:
    """Make a folder that appears whole; then remove what was left of its training."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not is_made(folder):
        raise UsageError(
            f"{folder} is not what mtk wrote, or was changed\nRemove it, and it is made again"
        )
    with new_folder(folder, overwrite=True) as work:
        fill(work)
        write_manifest(work, {"mtk": dict(facts)})
    training_state(folder).unlink(missing_ok=True)
