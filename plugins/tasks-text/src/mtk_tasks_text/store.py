"""Models in the track's cache: each in a folder of its own, whole or not there.

Imports no torch, so that a full cache costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.errors import CheckpointError
from mtk.folders import check_manifest, new_folder, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def get_or_make(
    folder: Path, facts: Mapping[str, object], make: Callable[[Path], None]
) -> Path:
    """Return a folder, making it first unless it is there and unchanged.

    It is filled under another name and then put in place, so that a killed process
    leaves nothing that is taken for whole. Of two processes that make the same folder,
    the later takes the place of the earlier, with the same content.

    Args:
        folder: where it belongs.
        facts: what its manifest says besides the hashes of the files.
        make: fills the folder it is given.
    """
    if not is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder, overwrite=True) as work:
            make(work)
            write_manifest(work, {"mtk": "track", **facts})
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a folder has the files, byte for byte, that its manifest lists."""
    try:
        return check_manifest(folder, contents=True) is not None
    except CheckpointError:
        return False
