"""What a track makes on first use, kept in folders that are whole or not there.

Imports no torch, so that a full cache costs milliseconds.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk.folders import check_manifest, new_folder, stale, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mtk.tracks import Models

# An unfinished folder this old belongs to a process that was killed.
_STALE_SECONDS = 24 * 3600.0
_SPREAD = 1000  # seeds of models between two seeds of a track
# What decides every model that is trained.
_LOOP = [
    Path(__file__).with_name(f"{name}.py")
    for name in ("making", "randomness", "training")
]


def make_models(
    folder: Path,
    cells: Sequence[str],
    *,
    seed: int,
    base: Callable[[Path], object],
    train: Callable[[Sequence[str], int, Path], object],
    report: Callable[[str, float], None],
    variant: str = "",
) -> Models:
    """Make the base, the expert of every cell and the multitask model, or find them.

    Model i is trained with the seed 1000 times the track's plus i, on one thread, so that
    no two seeds share a model and every run gives the same bytes.

    Args:
        folder: of this version of the track's models.
        cells: the held-in cells.
        seed: of the track.
        base: writes the base into the folder it is given.
        train: trains on cells, one or all, with a seed, and writes into a folder.
        report: told what is going on and the share done.
        variant: begins the name of the folder of trained models, where options decide
            them.
    """

    def write_base(work: Path) -> dict[str, Any]:
        base(work)
        return {"made": "base"}

    def made(name: str, learned: Sequence[str], number: int) -> Path:
        def write(work: Path) -> dict[str, Any]:
            own = _SPREAD * seed + number
            with one_thread():
                train(learned, own, work)
            return {"made": name, "seed": own, "torch": version("torch")}

        return get_or_make(folder / f"{variant}seed{seed}" / name, write)

    total = 2 * len(cells)  # multitask costs about as much as all experts together
    start, experts = get_or_make(folder / "base", write_base), []
    for number, cell in enumerate(cells):
        report(f"training the expert {cell}", number / total)
        experts.append(made(cell, [cell], number))
    report("training the multitask model", len(cells) / total)
    joint = made("multitask", cells, len(cells))
    report("models ready", 1.0)
    return {"base": start, "experts": experts, "multitask": joint}


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
