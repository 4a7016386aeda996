"""The table of ``mtk bench``: rows into text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mtk_cli import render
from mtk_cli.render import Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mtk.declare import Metric, Track
    from mtk.measures import Part
    from mtk.scores import Row

GROUPS = (
    ("Baselines and controls", ("baseline", "control")),
    ("Static: one merged model", ("static",)),
    ("Per task: one small code for each task", ("per_task",)),
    ("Routed: a model with a router", ("routed",)),
)
# Where the terminal is too narrow for one table, each group goes into the next one.
COLUMNS = (
    Column("method"),
    Column("rank", right=True, group="scores"),
    Column("held-in %", right=True, group="scores"),
    Column("normalised", right=True, group="cells"),
    Column("worst cell", right=True, group="cells"),
    Column("generalization %", right=True, group="scores"),
    Column("base ability %", right=True, group="scores"),
    Column("merge s", right=True, group="costs"),
    Column("stats s", right=True, group="costs"),
    Column("peak MB", right=True, group="costs"),
    Column("parameters", fold=True),
)
MORE_COLUMNS = (
    Column("vs reference", right=True, group="cells"),
    Column("worst gen.", right=True, group="cells"),
    Column("gen. rank", right=True, group="cells"),
    Column("tuning s", right=True, group="costs"),
    Column("trials", right=True, group="costs"),
    Column("added MB", right=True, group="costs"),
    Column("seeds", right=True, group="costs"),
)
ABILITY = 6  # its place among the columns
PARTS = {"held_in": "held-in", "generalization": "gen.", "ability": "base"}
LEGEND = (
    "* computed now. Held-in and generalization: mean score over cells, 95 % interval.",
    "Normalised: share of each expert's own score. Rank: by held-in, with its 95 % range.",
)
FORGETTING = (
    "Base ability: mean score on cells that no expert is trained for, 95 % interval.",
    "What a model forgot is the difference to the row of the base (pretrained).",
)
NOTHING = "-"


def write_table(rows: Sequence[Row], *, verbose: bool = False) -> None:
    """Write the rows, groups apart, in the order given."""
    columns = (*COLUMNS[:-1], *(MORE_COLUMNS if verbose else ()), COLUMNS[-1])
    lines = [
        _line(name, row, verbose=verbose)
        for name, row in zip(_names(rows), rows, strict=True)
    ]
    if not has_ability(rows):
        columns = (*columns[:ABILITY], *columns[ABILITY + 1 :])
        lines = [[*line[:ABILITY], *line[ABILITY + 1 :]] for line in lines]
    render.table(columns, *_sections(rows, lines), split=True)


def has_ability(rows: Sequence[Row]) -> bool:
    """Whether the track has cells of base ability."""
    return any(row.ability is not None for row in rows)


def _sections(
    rows: Sequence[Row], lines: Sequence[list[Any]]
) -> list[tuple[str, list[list[Any]]]]:
    """The lines under the titles of their rows' groups."""
    found = []
    for title, groups in GROUPS:
        own = [
            line for row, line in zip(rows, lines, strict=True) if row.group in groups
        ]
        if own:
            found.append((title, own))
    return found


def write_metrics(
    rows: Sequence[Row], track: Track, metrics: Mapping[str, Metric]
) -> None:
    """Write the metrics that do not rank; nothing where there are none."""
    places = other_places(rows, track)
    if not places:
        return
    columns = [Column("method")]
    for name, part in places:
        unit = " %" if _is_share(metrics[name]) else ""
        title = f"{name} {PARTS[part]}{unit}"
        columns.append(Column(title, right=True, group=name))
    lines: list[list[Any]] = [
        [name]
        + [
            measured(row.metrics.get(metric, {}).get(part), metrics[metric])
            for metric, part in places
        ]
        for name, row in zip(_names(rows), rows, strict=True)
    ]
    render.line()
    render.table(columns, *_sections(rows, lines), split=True)
    lower = [name for name, metric in metrics.items() if not metric.higher_is_better]
    if lower:
        render.line(f"Lower is better: {', '.join(lower)}.")


def other_places(rows: Sequence[Row], track: Track) -> list[tuple[str, str]]:
    """(metric, part) of all means but those that the main table shows, by metric."""
    cells = {
        "held_in": track.held_in,
        "generalization": track.generalization,
        "ability": track.abilities,
    }
    names = dict.fromkeys(name for task in track.tasks for name in task.metrics)
    return [
        (name, part)
        for name in names
        for part, tasks in cells.items()
        if any(part in row.metrics.get(name, {}) for row in rows)
        and not all(task.metrics[0] == name for task in tasks)
    ]


def measured(part: Part | None, metric: Metric) -> str:
    """A mean with its half width; shares in percent, other numbers as they are."""
    if part is None:
        return NOTHING
    if _is_share(metric):
        return percent(part.mean, part.interval)
    if not part.interval > 0:
        return f"{part.mean:.3g} ±{part.interval:g}"
    digits = max(0, 1 - math.floor(math.log10(part.interval)))  # two that count
    return f"{part.mean:z.{digits}f} ±{part.interval:.{digits}f}"


def _is_share(metric: Metric) -> bool:
    return (metric.low, metric.high) == (0.0, 1.0)


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
        percent(row.ability, row.ability_interval),
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
