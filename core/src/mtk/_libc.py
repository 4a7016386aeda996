"""Calls of the C library that Python lacks; each does nothing where there is none."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache

# glibc's numbers of mallopt's settings, and of sync_file_range's flags.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_START_WRITING = 2
# Freed memory that stays with each thread: a few temporary values of a chunk.
KEPT = 32 << 20


@cache
def _libc() -> ctypes.CDLL | None:
    """The C library, on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


@cache
def keep_freed_memory() -> None:
    """Let threads use freed memory again instead of handing it back each time.

    By default glibc returns what is freed at the end of a thread's memory, and the next
    temporary tensor pays for fresh, zeroed pages: more than for its arithmetic.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT)
        mallopt(_MMAP_THRESHOLD, KEPT)


def release_freed_memory() -> None:
    """Give freed memory back now, so that using it again is seen as growth."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reserve(descriptor: int, size: int) -> bool:
    """Allot a file's blocks beforehand; False where the disk has too little room.

    Where the file system cannot allot, nothing is done; Python's own call would write
    into every block there.
    """
    disk = os.fstatvfs(descriptor)
    if size > disk.f_bavail * disk.f_frsize:
        return False
    allot = getattr(_libc(), "fallocate64", None)
    if allot is None or not size:
        return True
    off = ctypes.c_int64
    allot.argtypes = [ctypes.c_int, ctypes.c_int, off, off]
    return not (allot(descriptor, 0, 0, size) and ctypes.get_errno() == errno.ENOSPC)


def start_writing(descriptor: int, start: int, size: int) -> None:
    """Let the system begin to bring a part of a file to the disk."""
    sync = getattr(_libc(), "sync_file_range", None)
    if sync is not None:
        off = ctypes.c_int64
        sync.argtypes = [ctypes.c_int, off, off, ctypes.c_uint]
        sync(descriptor, start, size, _START_WRITING)
