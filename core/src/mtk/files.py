"""Files that appear complete or not at all. Imports no torch."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import BufferedReader


def check_target(
    path: Path, inputs: Iterable[Path] = (), *, overwrite: bool = False
) -> None:
    """Refuse an output that exists, is no safetensors file, or is one of the inputs."""
    if path.suffix != ".safetensors":
        raise UsageError(f"the output {path} must be a file called NAME.safetensors")
    for source in inputs:
        if _is_of(path, source):
            raise UsageError(
                f"{path} is the input {source}, or a file of it; inputs are never changed"
            )
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path} is not a plain file; choose another --output")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; choose another --output or add --overwrite")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist")


def _is_of(path: Path, source: Path) -> bool:
    """Whether a path is an input, or belongs to the folder that is one."""
    if not source.exists():
        return False
    if not source.is_dir():
        return path.exists() and path.samefile(source)
    if source.resolve() in path.resolve().parents:
        return True
    return path.exists() and any(
        file.is_file() and path.samefile(file) for file in source.glob("*.safetensors")
    )


def belongs(folder: Path, file: Path) -> bool:
    """Whether a path is a plain file of its folder.

    A link may lead to another file of the folder, or, in the cache of the Hub, from
    ``REPOSITORY/snapshots/REVISION/...`` to ``REPOSITORY/blobs/HASH``; nowhere else.
    """
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError):  # dangling, or a circle of links
        return False
    if not real.is_file():
        return False
    place = folder.absolute()
    blobs = [
        above.parent.resolve() / "blobs"
        for above in (place, *place.parents)
        if above.name == "snapshots"
    ]
    return real.is_relative_to(place.resolve()) or real.parent in blobs


def state_of(file: Path) -> tuple[int, ...]:
    """What tells that a file is still the one that was opened."""
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_plain(file: Path) -> BufferedReader:
    """Open a regular file for reading; anything else, such as a pipe, is an OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    return os.fdopen(descriptor, "rb")


def replace_file(path: Path, write: Iterable[bytes | memoryview]) -> None:
    """Write chunks, one after the other, into a file that appears when it is complete."""
    offset = 0
    with replacing(path) as descriptor:
        for chunk in write:
            view = memoryview(chunk)
            write_at(descriptor, view, offset)
            offset += len(view)


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Give the descriptor of a temporary file; at the end, sync and rename it."""
    try:
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".partial", dir=path.parent
        )
    except OSError as error:
        raise UsageError(f"{path} could not be written: {error}") from error
    temporary = Path(name)
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.chmod(file_mode(0o666))
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path} could not be written: {error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_mode(mode: int) -> int:
    """The mode, as the user's mask allows it."""
    umask = os.umask(0o077)  # what another thread makes meanwhile is closed, not open
    os.umask(umask)
    return mode & ~umask


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data``, however many calls the system needs."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
