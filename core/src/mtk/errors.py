"""Every error a user can meet.

MtkError                 anything mtk refuses, with a message of at most three lines
├── UsageError           the request is wrong: names, parameters, files  (exit code 2)
│   ├── UnknownName      no plugin offers that name
│   ├── AmbiguousName    several plugins offer that name
│   ├── ParameterError   a parameter is unknown, of the wrong type or out of range
│   └── CheckpointError  a file is missing, damaged or does not fit the others
├── DeclarationError     a plugin declares something impossible
└── MethodError          a method failed while it ran                     (exit code 1)
"""

from __future__ import annotations


class MtkError(Exception):
    """Base of all errors that mtk raises on purpose."""


class UsageError(MtkError):
    """The request cannot be carried out as it was made."""


class UnknownName(UsageError):
    """No plugin offers that name."""


class AmbiguousName(UsageError):
    """More than one plugin offers that name."""


class ParameterError(UsageError):
    """A parameter is unknown, has the wrong type or is out of range."""


class CheckpointError(UsageError):
    """A checkpoint is missing, damaged, or does not fit the others."""


class DeclarationError(MtkError):
    """A plugin's declaration contradicts itself."""


class MethodError(MtkError):
    """A method raised, returned a wrong shape or produced NaN."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for use inside another message."""
    return (str(error).splitlines() or [""])[0]
