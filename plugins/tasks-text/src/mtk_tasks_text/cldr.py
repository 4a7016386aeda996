# ruff: noqa: RUF002  other languages have other signs
"""What the Unicode CLDR says, through Babel: names, dates and numbers in five languages.

Everything here is deterministic. Draws are made by hashing, which no version of a
random number generator can change.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mtk_tasks_text.cells import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("place", "language", "currency")
PER_KIND = 150
# Longer names would make every input of the ranked tasks longer.
_NAME_BYTES = 20
_FIRST, _LAST = dt.date(1950, 1, 1), dt.date(2049, 12, 31)
DATE_FORMATS = ("full", "long", "yMMMd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """Something that CLDR names in every language.

    Attributes:
        kind: one of ``KINDS``.
        code: what CLDR calls it, for example ``CH``.
        names: one per language of ``LANGUAGES``.
    """

    kind: str
    code: str
    names: tuple[str, ...]


def draw(label: str, below: int) -> int:
    """Return a number in ``range(below)`` that looks random and follows from a label."""
    return int.from_bytes(_hash(label)[:8], "big") % below


@lru_cache(maxsize=1)
def entities() -> tuple[Entity, ...]:
    """All entities, ``PER_KIND`` of each kind in turn, shuffled within their kind."""
    found = []
    for kind in KINDS:
        every = sorted(_named(kind), key=lambda entity: _hash(f"entity {entity.code}"))
        if len(every) < PER_KIND:
            raise ValueError(f"CLDR has {len(every)} names of {kind}, not {PER_KIND}")
        found.append(every[:PER_KIND])
    return tuple(entity for row in zip(*found, strict=True) for entity in row)


@lru_cache(maxsize=1)
def dates() -> tuple[dt.date, ...]:
    """The days of a century, shuffled."""
    span = range(_FIRST.toordinal(), _LAST.toordinal() + 1)
    order = sorted(span, key=lambda day: _hash(f"day {day}"))
    return tuple(dt.date.fromordinal(day) for day in order)


def write_date(day: dt.date, style: str, language: str) -> str:
    """Write a date in one of ``DATE_FORMATS``.

    >>> write_date(dt.date(2021, 3, 5), "long", "tr")
    '5 Mart 2021'
    """
    from babel.dates import format_date, format_skeleton

    if style == "yMMMd":
        return _plain(format_skeleton("yMMMd", day, locale=language))
    return _plain(format_date(day, style, locale=language))


def write_period(start: dt.date, end: dt.date, language: str) -> str:
    """Write a period the short way: what both ends share is said once.

    >>> write_period(dt.date(2021, 3, 5), dt.date(2021, 3, 9), "tr")
    '5–9 Mar 2021'
    """
    from babel.dates import format_interval

    return _plain(format_interval(start, end, "yMMMd", locale=language))


def write_number(hundredths: int, style: str, language: str) -> str:
    """Write a number of hundredths as decimals, or in words from a thousand up.

    >>> write_number(123450, "decimal", "de"), write_number(340000000, "words", "de")
    ('1.234,5', '3,4 Millionen')
    """
    from decimal import Decimal

    from babel.numbers import format_compact_decimal, format_decimal

    value = Decimal(hundredths) / 100
    if style == "words":
        return _plain(
            format_compact_decimal(
                value, format_type="long", locale=language, fraction_digits=1
            )
        )
    return _plain(format_decimal(value, locale=language))


def _plain(text: str) -> str:
    """Spaces of every width become the common one, which is one byte."""
    return " ".join(text.replace("\u202f", " ").replace("\u2009", " ").split())


def _named(kind: str) -> Iterator[Entity]:
    """Entities with a short name in every language, and not the same in all."""
    for code in _codes(kind):
        names = [_name(kind, code, language) for language in LANGUAGES]
        short = [n for n in names if n and len(n.encode()) <= _NAME_BYTES]
        unlike = {name.casefold() for name in short}
        if len(short) == len(LANGUAGES) and len(unlike) > 1:
            yield Entity(kind=kind, code=code, names=tuple(short))


def _codes(kind: str) -> list[str]:
    return sorted(_table(kind, "en"))


def _name(kind: str, code: str, language: str) -> str | None:
    return _table(kind, language).get(code)


def _table(kind: str, language: str) -> Mapping[str, str]:
    from babel import Locale

    locale = Locale(language)
    tables = {
        "place": locale.territories,
        "language": locale.languages,
        "currency": locale.currencies,
    }
    return tables[kind]


def _hash(label: str) -> bytes:
    return hashlib.sha256(f"cldr-t5 {label}".encode()).digest()
