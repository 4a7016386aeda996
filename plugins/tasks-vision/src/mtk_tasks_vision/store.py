"""Folders that appear whole or not at all, with a manifest of their weights.

Imports the standard library only, so that a full cache costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MANIFEST = "manifest.json"
# Unfinished folders start with this, and no finished folder does.
TEMPORARY = ".unfinished-"
# An unfinished folder this old belongs to a process that was killed.
_STALE_SECONDS = 24 * 3600.0


def get_or_make(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest of a folder, making the folder first if it is not there.

    The folder is filled under a temporary name and then renamed. When two processes
    race, the first to finish wins and the other takes what is there.

    Args:
        folder: where the finished folder belongs.
        make: fills the folder it is given; returns what the manifest should say.
    """
    manifest = read(folder)
    if manifest is not None:
        return manifest
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    work = _temporary(folder.parent)
    try:
        started = time.perf_counter()
        facts = make(work)
        facts |= {
            "seconds": round(time.perf_counter() - started, 3),
            "sha256": {
                path.relative_to(work).as_posix(): sha256(path)
                for path in sorted(work.rglob("*.safetensors"))
            },
        }
        text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
        (work / MANIFEST).write_text(text, encoding="utf-8")
        _publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    manifest = read(folder)
    if manifest is None:
        raise RuntimeError(f"{folder} changed while it was written; try again")
    return manifest


def read(folder: Path) -> dict[str, Any] | None:
    """Return the manifest if the folder is whole and its weights are unchanged."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        hashes: dict[str, str] = manifest["sha256"]
        whole = all(sha256(folder / name) == wanted for name, wanted in hashes.items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _publish(work: Path, folder: Path) -> None:
    """Rename a finished folder into place, unless a good one is already there."""
    if folder.exists() and read(folder) is None:
        # Damaged. Moved aside first: a folder that is not empty cannot be replaced.
        aside = _temporary(folder.parent)
        folder.replace(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
    try:
        work.rename(folder)
    except OSError:
        if read(folder) is None:
            raise


def _temporary(parent: Path) -> Path:
    """Make a folder of our own; unlike mkdtemp's, others may read it."""
    path = parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    path.mkdir()
    return path


def _remove_stale(parent: Path) -> None:
    """Delete what killed processes left behind long ago."""
    for path in parent.glob(f"{TEMPORARY}*"):
        try:
            stale = time.time() - path.stat().st_mtime > _STALE_SECONDS
        except OSError:
            continue
        if stale:
            shutil.rmtree(path, ignore_errors=True)
