"""The checkpoints of a track: made on first use, and known by their hashes afterwards."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk.files import replace_file
from mtk.records import source_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mtk.declare import Track

Found = dict[str, Any]


def default_cache() -> Path:
    """``MTK_CACHE``, else ``mtk`` in the user's cache folder."""
    given = os.environ.get("MTK_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(given) if given else Path(home) / "mtk"


def folder_of(cache: Path, track: Track) -> Path:
    """The track's own folder in the cache."""
    return cache / "tracks" / f"{track.name}-{track.version}"


def find(
    cache: Path, track: Track, seed: int, options: Mapping[str, Any]
) -> Found | None:
    """Paths and hashes from the index, if every file is still as it was; else None.

    Imports neither torch nor the track.
    """
    try:
        found: Found = json.loads(_index(cache, track, seed, options).read_text())
        for file, stamp in found["stamps"].items():
            if _stamp(Path(file)) != stamp:
                return None
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return found


def missing(cache: Path, track: Track) -> list[str]:
    """What this machine lacks to run a track with its default options."""
    from mtk.errors import DeclarationError
    from mtk.loading import resolve

    options = {param.name: param.default for param in track.options}
    try:
        target = resolve(track.target)
    except DeclarationError as error:
        return [str(error)]
    live = target(cache=folder_of(cache, track), seed=0, options=options)
    return [str(text) for text in live.missing()] if hasattr(live, "missing") else []


def make(
    cache: Path,
    track: Track,
    seed: int,
    options: Mapping[str, Any],
    report: Callable[[str, float | None], None],
) -> Found:
    """Let the track make its checkpoints, hash them, and remember both."""
    from mtk.loading import resolve

    folder = folder_of(cache, track)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"models cannot be kept in {cache}: {error}\n"
            "Let MTK_CACHE name a folder that can be written"
        ) from error
    live = resolve(track.target)(cache=folder, seed=seed, options=dict(options))
    lacking = list(live.missing()) if hasattr(live, "missing") else []
    if lacking:
        raise CheckpointError(
            f"track {track.name!r} cannot run here: {'; '.join(lacking)}"
        )
    models = live.prepare(report)
    paths: dict[str, Any] = {
        "base": str(models["base"]),
        "experts": [str(path) for path in models["experts"]],
        "multitask": str(models["multitask"]) if models["multitask"] else None,
    }
    files = {
        path: _weights(Path(path))
        for path in (paths["base"], *paths["experts"], paths["multitask"])
        if path is not None
    }
    hashes = {path: _hash(found) for path, found in files.items()}
    found: Found = {
        "paths": paths,
        "hashes": {
            "base": hashes[str(paths["base"])],
            "experts": [hashes[path] for path in paths["experts"]],
            **({"multitask": hashes[paths["multitask"]]} if paths["multitask"] else {}),
        },
        "stamps": {
            str(file): _stamp(file) for found in files.values() for file in found
        },
        "notes": [str(note) for note in live.notes()] if hasattr(live, "notes") else [],
    }
    index = _index(cache, track, seed, options)
    replace_file(index, [json.dumps(found).encode()])
    return found


def _index(cache: Path, track: Track, seed: int, options: Mapping[str, Any]) -> Path:
    text = json.dumps([seed, dict(options), source_hash(track.target)], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    return folder_of(cache, track) / f"index-{name}.json"


def _weights(path: Path) -> list[Path]:
    """The files that decide a model: weights, also those of parts of a pipeline.

    What an adapter means is said in its config as well.
    """
    if path.is_file():
        return [path]
    found = sorted(path.rglob("*.safetensors"))
    if not found:
        raise CheckpointError(f"{path}: the track made no weights there")
    return [*found, *sorted(path.rglob("adapter_config.json"))]


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
