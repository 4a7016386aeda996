"""Folders of the cache: whole or absent, and made again when they are damaged."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk.folders import check_manifest, new_folder, stale, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# An unfinished folder this old belongs to a process that was killed.
_STALE_SECONDS = 24 * 3600.0


def get_or_make(folder: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    """Make a folder unless it is there with the hashes that its manifest names.

    Args:
        folder: where the finished folder belongs.
        make: fills the folder it is given; returns what the manifest should say.
    """
    if is_whole(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in stale(folder):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    try:
        with new_folder(folder, overwrite=folder.exists()) as work:
            started = time.perf_counter()
            facts = make(work)
            seconds = round(time.perf_counter() - started, 3)
            write_manifest(work, {"mtk": "track", "seconds": seconds, **facts})
    except UsageError:
        if not is_whole(folder):  # else another process was faster, with the same bytes
            raise


def is_whole(folder: Path) -> bool:
    """Whether a folder and all that its manifest names are there and unchanged."""
    try:
        return check_manifest(folder, contents=True) is not None
    except CheckpointError:
        return False
