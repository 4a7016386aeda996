"""Parameters of methods, and the checks that all declarations share. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from mtk.errors import DeclarationError
from mtk.parameters import check_value

NAME = re.compile(r"[a-z][a-z0-9_]*")
SLUG = re.compile(r"[a-z][a-z0-9_-]*")


def require(condition: bool, message: str) -> None:
    """Refuse a declaration."""
    if not condition:
        raise DeclarationError(message)


def one_of(
    owner: str, field_name: str, value: object, allowed: tuple[str, ...]
) -> None:
    """Refuse a value that is none of those allowed."""
    require(
        value in allowed,
        f"{owner}: {field_name} is {value!r}; allowed are {', '.join(allowed)}",
    )


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of a method.

    Args:
        name: snake_case name, as in ``--param NAME=VALUE``.
        default: the value used when nothing is given; its type is the type of the
            parameter. ``None`` means that the method chooses, and needs ``type``.
        doc: one phrase of meaning.
        low, high: closed range of a number, or of each number of a list.
        open_low: the lower end itself is excluded.
        choices: the allowed values of an enumeration.
        grid: values tried by ``mtk bench``; empty means not tuned.
        type: ``bool``, ``int``, ``float``, ``str``, ``floats`` (a list of one number
            per expert), ``strings``, or ``float_or_floats``. Inferred from ``default``
            when left out.
        stage: ``merge`` parameters go to the method, ``statistic`` parameters to the
            collection of the statistics it needs.
    """

    name: str
    default: Any
    doc: str = ""
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    choices: tuple[str, ...] = ()
    grid: tuple[Any, ...] = ()
    type: str = ""
    stage: Literal["merge", "statistic"] = "merge"

    def __post_init__(self) -> None:
        require(
            bool(NAME.fullmatch(self.name)), f"parameter {self.name!r}: not snake_case"
        )
        object.__setattr__(
            self, "type", self.type or _infer_type(self.name, self.default)
        )
        for value in (self.default, *self.grid):
            if value is not None:
                check_value(self, value, owner="declaration", error=DeclarationError)


def _infer_type(name: str, default: object) -> str:
    for kind in (bool, int, float, str):
        if type(default) is kind:
            return kind.__name__
    if isinstance(default, tuple | list) and default:
        return "strings" if isinstance(default[0], str) else "floats"
    raise DeclarationError(f"parameter {name!r}: give type=, it has no typed default")
