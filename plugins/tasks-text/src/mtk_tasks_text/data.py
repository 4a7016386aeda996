"""Items of the cells of ``cldr-t5``: inputs and answers as text.

An item of a task is the same thing in every language (one pair of dates, one entity),
and belongs to one split in all of them. Pre-training sees neither the dates and numbers
of any split nor the answers of any task; it does see the names of all entities. The later
day of a period is drawn freely, and may be a day of pre-training or of another split.
"""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass

from mtk_tasks_text import cldr
from mtk_tasks_text.cells import (
    ABILITIES,
    LANGUAGES,
    RANKED,
    SPLITS,
    TASKS,
    options,
    parse,
    prompt,
)

# Items of a split; entities of one kind, where a task asks about entities.
SIZES = {"train": 480, "validation": 40, "test": 100}
_PER_KIND = {"train": 103, "validation": 14, "test": 33}
# A training entity is shown with this many partners in turn.
_PARTNERS = 4
# Ids of different tasks are this far apart.
_ID_SPACE = 100_000
# Where a use of dates and numbers starts in the shuffled order of all days; the
# distance is more than any use takes.
_BLOCKS = ("date", "number", "period", "translate-dates", "pretrain")
_BLOCK = 5_000
PRETRAIN_DAYS = _BLOCK
_PAIRS = tuple(itertools.permutations(range(len(LANGUAGES)), 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Some items of one cell.

    Attributes:
        inputs: what the encoder reads.
        labels: what is to be answered.
        ids: item numbers; the same number is the same item in every language.
    """

    inputs: tuple[str, ...]
    labels: tuple[str, ...]
    ids: tuple[int, ...]


def examples(cell: str, split: str) -> Examples:
    """Return the items of one cell, in the same order in every language.

    Args:
        cell: such as ``date-es``, or one of the abilities.
        split: train, validation or test.
    """
    if split not in SPLITS:
        raise ValueError(f"no split named {split!r}; the splits are {SPLITS}")
    task, language = parse(cell)
    uses = _items(task, split)
    made = [_write(task, language, item) for item in uses]
    space = (*TASKS, *ABILITIES).index(task) * _ID_SPACE
    return Examples(
        inputs=tuple(text for text, _ in made),
        labels=tuple(answer for _, answer in made),
        ids=tuple(space + item for item in uses),
    )


def entities(split: str) -> tuple[cldr.Entity, ...]:
    """Return the entities of a split, kinds in turn."""
    start = 0
    for name, size in _PER_KIND.items():
        stop = start + size * len(cldr.KINDS)
        if name == split:
            return cldr.entities()[start:stop]
        start = stop
    raise ValueError(f"no split named {split!r}; the splits are {SPLITS}")


def day(use: str, item: int) -> dt.date:
    """Return the date of an item; no two uses share one."""
    return cldr.dates()[_BLOCKS.index(use) * _BLOCK + item]


def number(item: int) -> tuple[int, str]:
    """Return the number of an item in hundredths, and how it is written.

    Both sequences walk through a prime number of values in strides, so that no number
    comes twice within as many items as are used.
    """
    if cldr.draw(f"words {item}", 2):
        tenths = 10 + item * 5_437 % 9_973  # 1.0 to 998.2 thousands or millions
        return tenths * 10 ** (4 + 3 * cldr.draw(f"millions {item}", 2)), "words"
    cents = 100_000 + item * 387_769 % 899_981
    return cents * 10 ** cldr.draw(f"power {item}", 3), "decimal"


def translation(text: str, target: str) -> str:
    """Return the input that asks for a translation.

    >>> translation("Japan", "es")
    'es: Japan'
    """
    return f"{target}: {text}"


def _items(task: str, split: str) -> range:
    """Item numbers of a split of a task; they count on from split to split."""
    sizes = dict(SIZES)
    if task in RANKED:
        sizes = {name: size * len(cldr.KINDS) for name, size in _PER_KIND.items()}
    if task == "same":
        sizes["train"] *= _PARTNERS
    start = 0
    for name, size in sizes.items():
        if name == split:
            return range(start, start + size)
        start += size
    raise AssertionError(split)


def _write(task: str, language: str, item: int) -> tuple[str, str]:
    """Return input and answer of an item in a language."""
    if task == "translate-names":
        return _translated_name(item)
    if task == "translate-dates":
        return _translated_date(item)
    text, answer = _WRITERS[task](language, item)
    return f"{prompt(task, language)}: {text}", answer


def _kind(language: str, item: int) -> tuple[str, str]:
    entity, _ = _entity("kind", item)
    answers = options("kind", language)
    return entity.names[LANGUAGES.index(language)], answers[
        cldr.KINDS.index(entity.kind)
    ]


def _same(language: str, item: int) -> tuple[str, str]:
    """An entity here and an entity in another language: are they the same?"""
    mine = LANGUAGES.index(language)
    entity, among = _entity("same", item)
    other = entity
    if cldr.draw(f"same {item}", 2):
        peers = [e for e in among if e.kind == entity.kind and e != entity]
        other = peers[cldr.draw(f"peer {item}", len(peers))]
    away = 1 + cldr.draw(f"away {item}", len(LANGUAGES) - 1)
    foreign = other.names[(mine + away) % len(LANGUAGES)]
    yes, no = options("same", language)
    return f"{entity.names[mine]} = {foreign}", yes if other is entity else no


def _entity(task: str, item: int) -> tuple[cldr.Entity, tuple[cldr.Entity, ...]]:
    """Return the entity of an item, and all those of its split."""
    split = next(name for name in SPLITS if item in _items(task, name))
    among = entities(split)
    return among[(item - _items(task, split).start) % len(among)], among


def _date(language: str, item: int) -> tuple[str, str]:
    when = day("date", item)
    style = cldr.DATE_FORMATS[cldr.draw(f"style {item}", len(cldr.DATE_FORMATS))]
    return cldr.write_date(when, style, language), when.isoformat()


def _number(language: str, item: int) -> tuple[str, str]:
    value, style = number(item)
    whole, cents = divmod(value, 100)
    answer = f"{whole}.{cents:02}".rstrip("0").rstrip(".")
    return cldr.write_number(value, style, language), answer


def _period(language: str, item: int) -> tuple[str, str]:
    """Two dates: some weeks, some months or some years apart."""
    start = day("period", item)
    least, most = ((1, 15), (20, 90), (300, 900))[cldr.draw(f"far {item}", 3)]
    apart = least + cldr.draw(f"apart {item}", most - least)
    end = start + dt.timedelta(days=apart)
    both = (cldr.write_date(when, "yMMMd", language) for when in (start, end))
    return " / ".join(both), cldr.write_period(start, end, language)


def _translated_name(item: int) -> tuple[str, str]:
    among = cldr.entities()
    entity = among[item % len(among)]
    first = cldr.draw(f"pair {entity.code}", len(_PAIRS))
    source, target = _PAIRS[(first + item // len(among)) % len(_PAIRS)]
    return translation(entity.names[source], LANGUAGES[target]), entity.names[target]


def _translated_date(item: int) -> tuple[str, str]:
    style = cldr.DATE_FORMATS[cldr.draw(f"translated {item}", len(cldr.DATE_FORMATS))]
    when = day("translate-dates", item)
    source, target = (
        LANGUAGES[i] for i in _PAIRS[cldr.draw(f"date pair {item}", len(_PAIRS))]
    )
    text = cldr.write_date(when, style, source)
    return translation(text, target), cldr.write_date(when, style, target)


_WRITERS = {
    "kind": _kind,
    "same": _same,
    "date": _date,
    "number": _number,
    "period": _period,
}
