"""The table of ``mtk bench``: rows into text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk_cli import render
from mtk_cli.render import Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mtk.scores import Row

GROUPS = (
    ("Baselines and controls", ("baseline", "control")),
    ("Static: one merged model", ("static",)),
    ("Per task: one small code for each task", ("per_task",)),
    ("Routed: a model with a router", ("routed",)),
)
COLUMNS = (
    Column("method"),
    Column("rank", right=True),
    Column("held-in %", right=True),
    Column("normalised", right=True, drop=1),
    Column("worst cell", right=True, drop=3),
    Column("generalization %", right=True),
    Column("merge s", right=True, drop=2),
    Column("stats s", right=True, drop=5),
    Column("peak MB", right=True, drop=4),
    Column("parameters", fold=True),
)
MORE_COLUMNS = (
    Column("vs reference", right=True, drop=8),
    Column("worst gen.", right=True, drop=9),
    Column("gen. rank", right=True, drop=7),
    Column("tuning s", right=True, drop=11),
    Column("trials", right=True, drop=6),
    Column("added MB", right=True, drop=10),
    Column("seeds", right=True, drop=12),
)
LEGEND = (
    "* computed now. Held-in and generalization: mean score over cells, 95 % interval.",
    "Normalised: share of each expert's own score. Rank: by held-in, with its 95 % range.",
)
NOTHING = "-"


def write_table(rows: Sequence[Row], *, verbose: bool = False) -> None:
    """Write the rows, groups apart, in the order given."""
    columns = (*COLUMNS[:-1], *(MORE_COLUMNS if verbose else ()), COLUMNS[-1])
    names = _names(rows)
    sections = []
    for title, groups in GROUPS:
        lines = [
            _line(name, row, verbose=verbose)
            for name, row in zip(names, rows, strict=True)
            if row.group in groups
        ]
        if lines:
            sections.append((title, lines))
    render.table(columns, *sections)


def _names(rows: Sequence[Row]) -> list[str]:
    """Plain names; qualified ones where two plugins offer the same name."""
    owners: dict[str, set[str]] = {}
    for row in rows:
        owners.setdefault(row.name, set()).add(row.qualified)
    return [row.name if len(owners[row.name]) == 1 else row.qualified for row in rows]


def _line(name: str, row: Row, *, verbose: bool) -> list[Any]:
    cells: list[Any] = [
        (f"{name} *" if row.new else name, "bold" if row.new else ""),
        rank_text(row),
        percent(row.held_in, row.held_in_interval),
        percent(row.normalised),
        _worst(row),
        percent(row.generalization, row.generalization_interval),
        number(row.merge_seconds, 2),
        number(row.statistics_seconds, 2),
        number(row.peak_bytes, 1, unit=1e6),
    ]
    if verbose:
        cells += [
            percent(row.difference, row.difference_interval, sign=True),
            percent(row.generalization_worst),
            str(row.generalization_rank or NOTHING),
            number(row.tuning_seconds, 1),
            number(row.trials, 0),
            number(row.added_bytes, 2, unit=1e6),
            ",".join(map(str, row.seeds)),
        ]
    note = f" ({row.note})" if row.note else ""
    return [*cells, (chosen(row.params) + note).strip()]


def percent(
    score: float | None, half_width: float | None = None, *, sign: bool = False
) -> str:
    """A fraction as ``81.2 ±1.3``."""
    if score is None:
        return NOTHING
    text = f"{100 * score:{'+' if sign else ''}.1f}"
    return text if half_width is None else f"{text} ±{100 * half_width:.1f}"


def number(value: float | None, digits: int, *, unit: float = 1.0) -> str:
    """A cost, or a dash where there is none."""
    return NOTHING if value is None else f"{value / unit:.{digits}f}"


def rank_text(row: Row) -> str:
    """``3 (2-5)``, or nothing for what is not ranked."""
    if row.rank is None:
        return NOTHING
    low, high = row.rank_low, row.rank_high
    return str(row.rank) if low is None else f"{row.rank} ({low}-{high})"


def _worst(row: Row) -> str:
    if row.worst is None:
        return NOTHING
    return f"{percent(row.worst)} {row.worst_task or ''}".rstrip()


def chosen(params: dict[str, Any] | Iterable[dict[str, Any]]) -> str:
    """Parameters per seed, told once where all seeds agree."""
    per_seed = [params] if isinstance(params, dict) else list(params)
    names = dict.fromkeys(name for values in per_seed for name in values)
    parts = []
    for name in names:
        texts = [render.value_text(values.get(name)) for values in per_seed]
        parts.append(f"{name}={'|'.join(texts if len(set(texts)) > 1 else texts[:1])}")
    return " ".join(parts)
