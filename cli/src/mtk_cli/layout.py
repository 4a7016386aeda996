"""Where the columns of a table go on a terminal: nothing in it is ever cut.

What does not fit side by side is wrapped between words, then left out if its column may
be, then put into further tables or below one another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtk_cli.render import Column

    Texts = Sequence[Sequence[str]]  # rows of cells

GAP = 2  # between two columns
LEAST_FOLDED = 16
MOST_LINES = 4  # about as many as a wrapped cell may have
# Longer words, such as paths, are broken.
LONGEST_WORD = 40
_PIECES = re.compile(r"[^ _]*[ _]|[^ _]+")


def least(column: Column, texts: Sequence[str]) -> int:
    """The width that a column needs."""
    pieces = [len(piece.rstrip()) for piece in _PIECES.findall(column.title)]
    longest = max(map(len, texts), default=0)
    if column.fold:
        words = [len(word) for text in texts for word in text.split()]
        word = min(max(words, default=0), LONGEST_WORD)
        longest = max(word, min(longest, LEAST_FOLDED), longest // MOST_LINES)
    return max(longest, *pieces)


def most(column: Column, texts: Sequence[str]) -> int:
    """The width with which nothing is wrapped."""
    return max(map(len, [column.title, *texts]))


def needed(columns: Sequence[Column], rows: Texts) -> int:
    """The width that columns need side by side."""
    return sum(_each(least, columns, rows)) + GAP * (len(columns) - 1)


def widths(columns: Sequence[Column], rows: Texts, width: int) -> list[int]:
    """Widths of columns side by side; wider than ``width`` in all only if need be."""
    found, wanted = _each(least, columns, rows), _each(most, columns, rows)
    spare = width - GAP * (len(columns) - 1)
    if sum(wanted) <= spare:
        return wanted
    # First what is wrapped gets the rest, the narrowest first; then the headings.
    for folded in (True, False):
        places = [p for p, column in enumerate(columns) if column.fold == folded]
        while sum(found) < spare:
            narrow = [place for place in places if found[place] < wanted[place]]
            if not narrow:
                break
            found[min(narrow, key=found.__getitem__)] += 1
    return found


def without_droppable(columns: Sequence[Column], rows: Texts, width: int) -> list[int]:
    """Places of the columns that stay if those are left out that may be."""
    shown = list(range(len(columns)))
    while _too_wide(columns, rows, shown, width):
        worst = max(shown, key=lambda place: columns[place].drop)
        if not columns[worst].drop:
            break
        shown.remove(worst)
    return shown


def blocks(columns: Sequence[Column], rows: Texts, width: int) -> list[list[int]]:
    """Places of the columns of several tables, each of which begins with the first."""
    groups: dict[object, list[int]] = {}
    for place, column in enumerate(columns[1:], 1):
        groups.setdefault(column.group or place, []).append(place)
    found: list[list[int]] = []
    now: list[int] = []
    for places in groups.values():
        parts = [places]
        if _too_wide(columns, rows, [0, *places], width):
            parts = [[place] for place in places]
        for part in parts:
            if now and _too_wide(columns, rows, [0, *now, *part], width):
                found.append(now)
                now = []
            now = now + part
    return [[0, *sorted(places)] for places in (*found, now) if places]


def heading(title: str, width: int) -> list[str]:
    """A title in lines of at most ``width``, broken after spaces and underscores."""
    lines = [""]
    for piece in _PIECES.findall(title):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def pick(rows: Sequence[Sequence[str]], places: Sequence[int]) -> list[list[str]]:
    """The cells at some places of every row."""
    return [[row[place] for place in places] for row in rows]


def _too_wide(
    columns: Sequence[Column], rows: Texts, places: Sequence[int], width: int
) -> bool:
    return needed([columns[place] for place in places], pick(rows, places)) > width


def _each(
    measure: Callable[[Column, Sequence[str]], int],
    columns: Sequence[Column],
    rows: Texts,
) -> list[int]:
    return [
        measure(column, [row[place] for row in rows])
        for place, column in enumerate(columns)
    ]
