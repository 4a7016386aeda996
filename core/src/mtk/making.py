"""What a track makes on first use, kept in folders that are whole or not there.

Imports no torch, so that a full cache costs milliseconds.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk.folders import check_manifest, new_folder, stale, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mtk.tracks import Models

# An unfinished folder this old belongs to a process that was killed.
_STALE_SECONDS = 24 * 3600.0
# What decides every model that is trained.
_LOOP = [Path(__file__).with_name(name) for name in ("randomness.py", "training.py")]


def make_models(
    base: Path,
    cells: Sequence[str],
    make: Callable[[str, Sequence[str], int], Path],
    report: Callable[[str, float], None],
) -> Models:
    """Make the expert of every cell and the multitask model, in this order.

    Args:
        base: the base, which is there already.
        cells: the held-in cells.
        make: makes one model, or finds it: its name, the cells that it learns and its
            number among all models -> where it is.
        report: told what is going on and the share done.
    """
    total = 2 * len(cells)  # multitask costs about as much as all experts together
    experts = []
    for number, cell in enumerate(cells):
        report(f"training the expert {cell}", number / total)
        experts.append(make(cell, [cell], number))
    report("training the multitask model", len(cells) / total)
    joint = make("multitask", cells, len(cells))
    report("models ready", 1.0)
    return {"base": base, "experts": experts, "multitask": joint}


def get_or_make(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> Path:
    """Return a folder, making it first unless it is there and unchanged.

    It is filled under another name and then put in place, so that a killed process leaves
    nothing that is taken for whole. A damaged folder is made again. When two processes
    race, one result is taken by both.

    Args:
        folder: where it belongs.
        make: fills the folder it is given; returns what the manifest should say beside
            the hashes of all files.
    """
    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in stale(folder):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    try:
        with new_folder(folder, overwrite=folder.exists()) as work:
            started = time.perf_counter()
            facts = dict(make(work))
            seconds = round(time.perf_counter() - started, 3)
            write_manifest(work, {"mtk": "track", "seconds": seconds, **facts})
    except UsageError:
        if not is_whole(folder):  # else another process was faster, with the same bytes
            raise
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a folder and all that its manifest names are there, byte for byte."""
    try:
        return check_manifest(folder, contents=True) is not None
    except CheckpointError:
        return False


def fingerprint(files: Iterable[Path], *more: str) -> str:
    """Twelve hexadecimal digits that change with any of the files, or the training loop.

    Named after it, a folder of the cache is made anew when the code or the data that
    decide it have changed.
    """
    digest = hashlib.sha256("\0".join(more).encode())
    for file in (*_LOOP, *files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's for the length of a block: equal sums, so equal bytes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
