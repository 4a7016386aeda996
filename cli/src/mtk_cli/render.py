"""What is written: lines, tables, JSON. The only module that knows about colour."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    Cell = str | tuple[str, str]  # text, or (text, style)

# Longer lines of an error are cut: names in files have no limit.
LONGEST = 1000
SCHEMA = 1
# Wide enough that nothing is cut when the output is piped.
PIPE_WIDTH = 10_000
GAP = 3  # between two columns on a terminal
LEAST_FOLDED = 24
_MARK = "[{}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A table column.

    Args:
        title: its heading.
        right: for numbers.
        fold: its text may be wrapped.
        drop: above 0, it is left out where the terminal is too narrow, highest first.
    """

    title: str
    right: bool = False
    fold: bool = False
    drop: int = 0


def console(stream: TextIO) -> Console:
    """A rich console on ``stream``, which honours NO_COLOR and FORCE_COLOR."""
    from rich.console import Console

    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def line(text: str = "", style: str = "", *, err: bool = False) -> None:
    """Write one line, or several, unwrapped."""
    stream = sys.stderr if err else sys.stdout
    if style:
        console(stream).print(text, style=style, soft_wrap=True)
    else:
        stream.write(f"{text}\n")


def error(message: str) -> None:
    """Write an error message to stderr; what files bring into it cannot steer a terminal."""
    lines = ["".join(map(_visible, text))[:LONGEST] for text in message.split("\n")]
    message = "\n".join(lines)
    line(f"mtk: {message}", "red" if sys.stderr.isatty() else "", err=True)


def _visible(character: str) -> str:
    return character if character.isprintable() else "?"


def note(message: str) -> None:
    """Write a message that is no data to stderr."""
    line(message, "dim" if sys.stderr.isatty() else "", err=True)


def table(
    columns: Sequence[Column], *sections: tuple[str, Sequence[Sequence[Cell]]]
) -> None:
    """Write a table; each section is a title (may be empty) and its rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console(sys.stdout)
    grid = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False)
    shown = _fitting(columns, [rows for _, rows in sections], out.width)
    for column in (columns[place] for place in shown):
        grid.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold",
        )
    for index, (title, rows) in enumerate(sections):
        if title:
            grid.add_row()
            grid.add_row(_MARK.format(index))
        for row in rows:
            cells = (_styled(row[place]) for place in shown)
            grid.add_row(*(Text(text, style=style) for text, style in cells))
    # A title is longer than the cells below it and must not widen their column, so it
    # takes the place of its mark afterwards.
    marks = {_MARK.format(index): title for index, (title, _) in enumerate(sections)}
    for text in _captured(out, grid).split("\n"):
        title = marks.get(text.strip(), "")
        line(*((title, "bold") if title else (text.rstrip(), "")))
    hidden = [
        column.title for place, column in enumerate(columns) if place not in shown
    ]
    if hidden:
        note(f"Not shown, the terminal is too narrow: {', '.join(hidden)}")


def _styled(cell: Cell) -> tuple[str, str]:
    return cell if isinstance(cell, tuple) else (cell, "")


def _fitting(
    columns: Sequence[Column], sections: Sequence[Sequence[Sequence[Cell]]], width: int
) -> list[int]:
    """Places of the columns that fit into ``width``."""
    widths = []
    for place, column in enumerate(columns):
        cells = [_styled(row[place])[0] for rows in sections for row in rows]
        longest = max(map(len, [column.title, *cells]))
        widths.append(GAP + (min(longest, LEAST_FOLDED) if column.fold else longest))
    shown = list(range(len(columns)))
    while sum(widths[place] for place in shown) > width:
        worst = max(shown, key=lambda place: columns[place].drop)
        if not columns[worst].drop:
            break
        shown.remove(worst)
    return shown


def _captured(out: Console, renderable: Any) -> str:
    with out.capture() as captured:
        out.print(renderable)
    return captured.get().rstrip("\n")


def json_text(payload: Mapping[str, Any]) -> None:
    """Write ``payload`` as JSON with the version of the schema at its head."""
    document = {"schema": SCHEMA, **plain(payload)}
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """``value`` in JSON's own types; NaN and infinity become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value) if isinstance(value, PurePath) else target_name(value)


def target_name(target: Any) -> str:
    """A target as text: what was declared, or where the object was defined."""
    if isinstance(target, str):
        return target
    module = getattr(target, "__module__", type(target).__module__)
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{module}:{name}"


def size(count: float) -> str:
    """Bytes in a unit that people read."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def pairs(values: Mapping[str, Any]) -> str:
    """``{"density": 0.2}`` -> ``density=0.2``, as ``--param`` takes it."""
    return " ".join(f"{key}={value_text(value)}" for key, value in values.items())


def value_text(value: Any) -> str:
    """A parameter's value as ``--param`` takes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(plain(value), separators=(",", ":"))
