"""Exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the number means that ``mtk`` ends with."""

    DONE = 0
    """Everything that was asked for was done."""
    FAILED = 1
    """The request was carried out, and something in it failed."""
    USAGE = 2
    """The request is wrong: a name, a parameter, a file. Nothing was changed."""
    NOTHING = 3
    """The request is right, but there is nothing to run."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C; finished records are kept."""
