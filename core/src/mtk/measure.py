"""Seconds and peak memory of a block, as the operating system counts them."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mtk._libc import release_freed_memory

if TYPE_CHECKING:
    from types import TracebackType

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _status(key: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith(key)), None)
    return None if kib is None else int(kib) * 1024


class Measure:
    """Context manager: ``seconds``, and ``peak_bytes`` above the memory at the start.

    On Linux the peak is reset first, so it belongs to the block. Elsewhere only growth
    of the process's highest peak is seen.
    """

    seconds: float = 0.0
    peak_bytes: int = 0

    def __enter__(self) -> Self:
        release_freed_memory()
        try:
            _CLEAR.write_text("5")
        except OSError:
            self._before = _peak_ever()
        else:
            self._before = _status("VmRSS:") or 0
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        peak = _status("VmHWM:") or _peak_ever()
        self.peak_bytes = max(0, peak - self._before)


def _peak_ever() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
