"""What is written: lines, tables, JSON. The only module that knows about colour."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import textwrap
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO

from mtk_cli import layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    Cell = str | tuple[str, str]  # text, or (text, style)
    Section = tuple[str, Sequence[Sequence[Cell]]]  # title, rows

# Longer lines of an error are cut: names in files have no limit.
LONGEST = 1000
SCHEMA = 1
# Wide enough that nothing is cut when the output is piped.
PIPE_WIDTH = 10_000
LABEL = 16  # width of the labels of facts
_MARK = "[{}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A table column.

    Args:
        title: its heading.
        right: for numbers.
        fold: its text may be wrapped.
        drop: above 0, it is left out where the terminal is too narrow, highest first.
        group: columns of one group stay together where a table is split.
    """

    title: str
    right: bool = False
    fold: bool = False
    drop: int = 0
    group: str = ""


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


def table(columns: Sequence[Column], *sections: Section, split: bool = False) -> None:
    """Write a table; each section is a title (may be empty) and its rows.

    Args:
        columns: the first names the row.
        sections: titles and rows.
        split: where the terminal is too narrow, spread the columns over several
            tables; else each section is a table, or its rows are paragraphs.
    """
    width = console(sys.stdout).width
    texts = _texts(sections)
    shown = layout.without_droppable(columns, texts, width)
    chosen = [columns[place] for place in shown]
    if layout.needed(chosen, layout.pick(texts, shown)) <= width:
        _grid(columns, sections, shown)
        hidden = [column.title for column in columns if column not in chosen]
        if hidden:
            note(f"Not shown, the terminal is too narrow: {', '.join(hidden)}")
    elif split:
        for number, places in enumerate(layout.blocks(columns, texts, width)):
            filled = _filled(sections, places)
            if filled and number:
                line()
            if filled:
                _grid(columns, filled, places)
    elif len(sections) > 1:
        for number, section in enumerate(sections):
            if number:
                line()
            table(columns, section)
    else:
        _paragraphs(columns, *sections)


def _filled(sections: Sequence[Section], places: Sequence[int]) -> list[Section]:
    """The rows that say anything at some places, their name left aside."""
    found: list[Section] = []
    for title, rows in sections:
        own = [row for row in rows if any(_styled(row[p])[0] for p in places[1:])]
        if own:
            found.append((title, own))
    return found


def _grid(
    columns: Sequence[Column], sections: Sequence[Section], places: Sequence[int]
) -> None:
    """The columns at some places, side by side."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console(sys.stdout)
    width = out.width
    shown = [columns[place] for place in places]
    texts = layout.pick(_texts(sections), places)
    widths = layout.widths(shown, texts, width)
    style = box.SIMPLE_HEAD if out.is_terminal else None
    grid = Table(
        box=style, pad_edge=False, show_edge=False, collapse_padding=out.is_terminal
    )
    for column, heading, wide in zip(
        shown, _headings(shown, widths), widths, strict=True
    ):
        grid.add_column(
            heading,
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold",
            width=wide,
        )
    for index, (title, rows) in enumerate(sections):
        if title:
            grid.add_row()
            grid.add_row(_MARK.format(index))
        for row in rows:
            cells = (_styled(row[place]) for place in places)
            grid.add_row(*(Text(text, style=style) for text, style in cells))
    # A title is longer than the cells below it and must not widen their column, so it
    # takes the place of its mark afterwards.
    marks = {_MARK.format(index): title for index, (title, _) in enumerate(sections)}
    # Lines that are too long are for the terminal to break; rich would cut them.
    out.width = max(width, sum(widths) + layout.GAP * len(widths))
    for text in _captured(out, grid).split("\n"):
        title = marks.get(text.strip(), "")
        if title:
            line(_wrapped(title, width), "bold")
        else:
            line(text.rstrip())


def _paragraphs(columns: Sequence[Column], section: Section) -> None:
    """Every row below the other, with all its columns."""
    title, rows = section
    if title:
        line(_wrapped(title, console(sys.stdout).width), "bold")
    for index, (first, *rest) in enumerate(rows):
        if index or title:
            line()
        line(_styled(first)[0], "bold")
        cells = zip(columns[1:], map(_styled, rest), strict=True)
        facts({column.title: text for column, (text, _) in cells if text})


def facts(values: Mapping[str, str]) -> None:
    """Write labels and texts; long texts are wrapped beside their labels."""
    width = console(sys.stdout).width
    for label, text in values.items():
        line(_wrapped(text, width, f"  {label:{LABEL}} "))


def _wrapped(text: str, width: int, label: str = "") -> str:
    """A text behind a label, in lines that fit; words are broken only where needed."""
    room = max(width - len(label), LABEL)
    lines = textwrap.wrap(text, room, break_on_hyphens=False)
    return f"\n{'':{len(label)}}".join([label + "".join(lines[:1]), *lines[1:]])


def _headings(columns: Sequence[Column], widths: Sequence[int]) -> list[str]:
    """Titles, broken where they must be, that stand on one line at their foot."""
    broken = [
        layout.heading(column.title, width)
        for column, width in zip(columns, widths, strict=True)
    ]
    tallest = max(map(len, broken))
    return ["\n".join([""] * (tallest - len(part)) + part) for part in broken]


def _texts(sections: Sequence[Section]) -> list[list[str]]:
    return [[_styled(cell)[0] for cell in row] for _, rows in sections for row in rows]


def _styled(cell: Cell) -> tuple[str, str]:
    return cell if isinstance(cell, tuple) else (cell, "")


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
