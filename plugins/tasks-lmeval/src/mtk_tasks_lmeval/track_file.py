"""A track from a TOML file, without Python. ``docs/how-to/bring-your-own-track.md``.

The file is read strictly: a key that is not known is an error, and so is a JSONL file
that is not there or has a line that is no item. Paths are relative to the file. What only
the harness knows is asked later (:mod:`mtk_tasks_lmeval.rehearsal`). No torch is imported.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mtk
from mtk.errors import DeclarationError, UsageError, first_line
from mtk.loading import resolve
from mtk_tasks_lmeval.entries import read_spec
from mtk_tasks_lmeval.metrics import metric_name
from mtk_tasks_lmeval.spec import Source
from mtk_tasks_lmeval.splits import check_data

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mtk_tasks_lmeval.spec import Cell, Spec

MOST_BYTES = 1_000_000
# Keys that change no score, so that a record stays valid when they change.
_WITHOUT_EFFECT = ("summary", "download")


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a track from a file: it can travel to a worker process."""

    spec: Spec

    def __call__(self, *, cache: Path, seed: int, options: Mapping[str, object]) -> Any:
        """The live track; the harness is imported only now."""
        live = resolve("mtk_tasks_lmeval.live:FileTrack")
        return live(self.spec, cache=cache, seed=seed, options=options)


def load_track(path: Path | str) -> tuple[mtk.Track, Target]:
    """Read a track file.

    Args:
        path: the TOML file.

    Returns:
        The declaration, whose ``target`` is the second thing returned, ready for
        ``mtk.bench(track=...)``; and the target: called with a cache, a seed and options
        it gives a :class:`mtk.tracks.LiveTrack`.

    Raises:
        UsageError: what is wrong in the file or its JSONL files, in at most three lines.
    """
    path = Path(path)
    table = _table(path)
    spec = read_spec(table, path, version="")
    check_data(spec)
    spec = replace(spec, version=_version(table, spec))
    target = Target(spec)
    try:
        tasks = tuple(_task(cell, path) for cell in spec.cells)
        track = mtk.Track(
            name=spec.name,
            target=target,
            summary=spec.summary,
            setting=spec.setting,
            tasks=tasks,
            version=spec.version,
            adapter=spec.adapter,
            merge=spec.merge,
            base=spec.base,
            source=str(path),
            embedded=False,
        )
    except DeclarationError as error:
        raise UsageError(f"{path}: {error}") from error
    return track, target


def _task(cell: Cell, path: Path) -> mtk.Task:
    names = cell.metrics
    if not cell.source.data:
        try:
            names = tuple(
                metric_name(name, ranks=place == 0)
                for place, name in enumerate(cell.metrics)
            )
        except KeyError as error:
            raise UsageError(
                f"{path}: cell {cell.name!r}: metric {error} can only stand first\n"
                "mtk has no name for it; see the list of the how-to on tracks"
            ) from error
    return mtk.Task(
        name=cell.name,
        held_in=cell.kind == "held_in",
        ability=cell.kind == "ability",
        factors=cell.factors,
        metrics=names,
        expert=cell.expert,
    )


def _table(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES} bytes; no track is")
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML file: {first_line(error)}") from error


def _version(table: Mapping[str, Any], spec: Spec) -> str:
    """A short hash of what the file says and of the local data that it names."""
    said = {key: table[key] for key in table if key not in _WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for file in sorted({file for cell in spec.cells for file in _files(cell)}):
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise UsageError(f"{spec.path}: {file}: {first_line(error)}") from error
    return digest.hexdigest()[:12]


def _files(cell: Cell) -> Iterator[Path]:
    """Local data and task files of a cell."""
    for source in (cell.source, cell.validation):
        if isinstance(source, Source) and source.data is not None:
            yield source.data
    for folder in cell.include:
        for suffix in (".yaml", ".yml", ".py", ".jsonl", ".json"):
            yield from filter(Path.is_file, folder.rglob(f"*{suffix}"))
