"""Saying what is going on, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from mtk_cli import render

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.progress import Progress

    from mtk.results import Merged

# Between two lines, where there is no terminal: often enough to see that it lives.
SECONDS_BETWEEN_LINES = 5.0


class Reporter:
    """Context manager and callable: ``reporter(message, share done or None)``.

    Args:
        quiet: say nothing.
        verbose: say everything, one line each, and draw no bar.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._bar: Progress | None = None
        self._start = time.monotonic()
        self._last = -SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        """Draw the bar, on a terminal."""
        if not self._quiet and not self._verbose and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, message: str, share: float | None = None) -> None:
        """Say what is going on, and the share done where it is known."""
        if self._quiet:
            return
        if self._bar is not None:
            total = None if share is None else 1.0
            self._bar.update(
                self._task, description=message, completed=share or 0.0, total=total
            )
            return
        elapsed = time.monotonic() - self._start
        if self._verbose or elapsed - self._last >= SECONDS_BETWEEN_LINES:
            self._last = elapsed
            part = "" if share is None else f" {share:.0%}"
            render.note(f"{elapsed:6.1f} s{part:>5}  {message}")


class MergeProgress:
    """Bytes read, speed and time left of a merge."""

    def __init__(self, *, quiet: bool) -> None:
        self._reporter = Reporter(quiet=quiet)
        self._lock, self._done, self._total = Lock(), 0, 0
        self._start = 0.0

    def __enter__(self) -> Self:
        """Draw the bar, on a terminal."""
        self._reporter.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reporter.__exit__(kind, error, trace)

    def run(
        self,
        request: dict[str, Any],
        target: Path | None,
        *,
        public: bool = False,
        **options: Any,
    ) -> Merged:
        """Prepare and execute a merge, and say how far it is.

        ``public``: the result names no folder of this machine.
        """
        from mtk.estimates import expected_bytes
        from mtk.merging import execute, prepare

        self._reporter("opening the models")
        plan = prepare(**request)
        if public:
            from mtk import provenance

            plan = provenance.public(plan)
        self._total = sum(expected_bytes(part.job) for part in plan.parts)
        self._start = time.monotonic()
        overwrite = bool(request.get("overwrite"))
        return execute(plan, target, overwrite=overwrite, progress=self._add, **options)

    def _add(self, count: int) -> None:
        with self._lock:
            self._done += count
            spent = time.monotonic() - self._start
            speed = self._done / spent if spent > 0 else 0.0
            left = max(self._total - self._done, 0) / speed if speed else 0.0
            self._reporter(
                f"{render.size(self._done)} of {render.size(self._total)}, "
                f"{render.size(int(speed))}/s, {left:.0f} s left",
                min(self._done / max(self._total, 1), 1.0),
            )


def _bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=render.console(sys.stderr),
        transient=True,
    )
