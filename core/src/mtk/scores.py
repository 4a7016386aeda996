"""From records to rows: means, intervals, ranks, correlations. Needs numpy only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mtk.intervals import Draws, half_width
from mtk.measures import Part, measures, parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtk.declare import Track

    Record = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Row:
    """One line of the table. Scores are fractions; intervals are half widths at 95 %.

    Ranks are 1 for the best of the static methods on the held-in tasks;
    ``rank_low`` .. ``rank_high`` covers 95 % of the bootstrap.
    ``difference`` is held-in minus that of the reference method, paired item by item.
    ``ability`` is the mean over cells of base ability; what is lost, the base's row tells.
    ``metrics`` has every metric, also those that do not rank, and ``without_statistic``
    the merged tensors that a statistic did not reach.
    """

    name: str
    qualified: str
    group: str
    seeds: list[int]
    held_in: float | None = None
    held_in_interval: float | None = None
    normalised: float | None = None
    worst_task: str | None = None
    worst: float | None = None
    generalization: float | None = None
    generalization_interval: float | None = None
    generalization_worst: float | None = None
    ability: float | None = None
    ability_interval: float | None = None
    rank: int | None = None
    rank_low: int | None = None
    rank_high: int | None = None
    generalization_rank: int | None = None
    difference: float | None = None
    difference_interval: float | None = None
    merge_seconds: float | None = None
    statistics_seconds: float | None = None
    tuning_seconds: float | None = None
    trials: int | None = None
    peak_bytes: int | None = None
    added_bytes: int | None = None
    params: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, Part]] = field(default_factory=dict)
    without_statistic: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    new: bool = False
    reference: bool = False
    note: str = ""


def rows(
    records: Sequence[Mapping[str, Any]], track: Track, new: Sequence[str] = ()
) -> list[Row]:
    """One row per configuration, best first within each group."""
    if not records:
        return []
    draws = _draws(records, track)
    held_in = [task.name for task in track.held_in]
    experts = {
        record["identity"]["seed"]: record["scores"]
        for record in records
        if record["group"] == "baseline" and record["name"] == "experts"
    }
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["identity"]["seed"]):
        identity = record["identity"]
        key = (record["group"], identity["method"], str(identity.get("params")))
        grouped.setdefault(str(key), []).append(record)
    result, samples = [], {}
    for group in grouped.values():
        row = _row(group, track, experts, draws, new)
        samples[id(row)] = [draws["held_in"].mean(r, held_in) for r in group]
        result.append(row)
    _rank(result, samples)
    _compare(result, samples)
    order = {"baseline": 0, "control": 1, "static": 2, "per_task": 3, "routed": 4}
    result.sort(key=lambda row: (order[row.group], -(row.held_in or 0), row.name))
    return result


def _draws(records: Sequence[Record], track: Track) -> dict[str, Draws]:
    """Part of the grid -> draws. Held-in and generalization cells share their items."""
    grid = [task.name for task in track.tasks if not task.ability]
    shared = Draws(records, grid)
    apart = Draws(records, [task.name for task in track.abilities])
    return {"held_in": shared, "generalization": shared, "ability": apart}


def _row(
    group: Sequence[Record],
    track: Track,
    experts: Mapping[int, Mapping[str, float]],
    draws: Mapping[str, Draws],
    new: Sequence[str],
) -> Row:
    first = group[0]
    scores = {
        task: float(np.mean([r["scores"][task] for r in group]))
        for task in first["scores"]
    }
    held_in = [task.name for task in track.held_in]
    worst = min(held_in, key=lambda task: scores[task])
    costs = {key: [r["costs"].get(key) for r in group] for key in first["costs"]}
    row = Row(
        name=first["name"],
        qualified=first["identity"]["method"],
        group=first["group"],
        seeds=[r["identity"]["seed"] for r in group],
        worst_task=worst,
        worst=scores[worst],
        tasks=scores,
        metrics=measures(group, track, draws),
        without_statistic=dict(first.get("without_statistic") or {}),
        notes=list(dict.fromkeys(note for r in group for note in r.get("notes", ()))),
        keys=[r["key"] for r in group],
        params=[r["params"] for r in group],
        new=any(r["key"] in new for r in group),
        reference=bool(first.get("reference")),
        note=_note(first),
        **{key: _typical(values) for key, values in costs.items()},
    )
    for part, cells in parts_of(track).items():
        tasks = [task.name for task in cells]
        if tasks and all(task in scores for task in tasks):
            means = [float(np.mean([r["scores"][t] for t in tasks])) for r in group]
            drawn = [draws[part].mean(r, tasks) for r in group]
            setattr(row, part, float(np.mean(means)))
            setattr(row, f"{part}_interval", half_width(drawn, means))
    row.normalised = _normalised(group, held_in, experts)
    if row.generalization is not None:
        row.generalization_worst = min(scores[t.name] for t in track.generalization)
    return row


def _normalised(
    group: Sequence[Record],
    held_in: Sequence[str],
    experts: Mapping[int, Mapping[str, float]],
) -> float | None:
    """Mean share of each expert's own score; None where experts were not scored."""
    ratios = [
        r["scores"][t] / experts[r["identity"]["seed"]][t]
        for r in group
        for t in held_in
        if experts.get(r["identity"]["seed"], {}).get(t)
    ]
    return float(np.mean(ratios)) if ratios else None


def _note(record: Mapping[str, Any]) -> str:
    fixed = record["identity"].get("params")
    return "fixed " + ", ".join(f"{k}={v}" for k, v in fixed.items()) if fixed else ""


def _typical(values: Sequence[Any]) -> Any:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    middle = float(np.median(numbers))
    return round(middle) if all(isinstance(value, int) for value in numbers) else middle


def _rank(result: Sequence[Row], samples: Mapping[int, list[np.ndarray]]) -> None:
    seeds = max((row.seeds for row in result), key=len)
    static = [row for row in result if row.group == "static" and row.seeds == seeds]
    for row in result:
        if row.seeds != seeds:
            row.note = f"seeds {row.seeds} only; not ranked {row.note}".rstrip()
    if not static:
        return
    scores = np.array([row.held_in for row in static])
    # Seeds are drawn as well, the same for all rows, so that the range covers both.
    each = np.array([samples[id(row)] for row in static])  # (rows, seeds, draws)
    count, draws = each.shape[1:]
    chosen = np.random.default_rng(1).integers(count, size=(count, draws))
    drawn = each[:, chosen, np.arange(draws)].mean(1)  # (rows, draws)
    ranks = (drawn[None] > drawn[:, None]).sum(1) + 1
    low, high = np.percentile(ranks, [2.5, 97.5], axis=1)
    for index, row in enumerate(static):
        row.rank = int((scores > scores[index]).sum()) + 1
        row.rank_low, row.rank_high = (
            int(np.floor(low[index])),
            int(np.ceil(high[index])),
        )
    unseen = [row for row in static if row.generalization is not None]
    for row in unseen:
        better = [
            r for r in unseen if (r.generalization or 0) > (row.generalization or 0)
        ]
        row.generalization_rank = len(better) + 1


def _compare(
    result: Sequence[Row],
    samples: Mapping[int, list[np.ndarray]],
) -> None:
    """Paired difference of every row to the reference method's."""
    reference = next(
        (
            row
            for row in result
            if row.reference and row.group == "static" and not row.note
        ),
        None,
    )
    if reference is None:
        return
    base = dict(zip(reference.seeds, samples[id(reference)], strict=True))
    for row in result:
        pairs = [
            replicate - base[seed]
            for seed, replicate in zip(row.seeds, samples[id(row)], strict=True)
            if seed in base
        ]
        if row is reference or not pairs or row.held_in is None:
            continue
        row.difference = float(row.held_in - (reference.held_in or 0))
        row.difference_interval = half_width(pairs, [float(p.mean()) for p in pairs])


def spearman(one: Sequence[float], two: Sequence[float]) -> float | None:
    """Rank correlation with average ranks for ties; None below three pairs."""
    if len(one) < 3:
        return None
    a, b = (_ranks(np.asarray(values, float)) for values in (one, two))
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return np.asarray(below + (equal + 1) / 2, float)


def facts(records: Sequence[Mapping[str, Any]], track: Track) -> dict[str, float]:
    """Statements about the whole table.

    ``held_in_vs_generalization``: rank correlation over static methods, mean over seeds.
    ``stability_held_in``, ``stability_generalization``: mean rank correlation of the order
    of methods between pairs of seeds.
    """
    sides = {
        "held_in": [task.name for task in track.held_in],
        "generalization": [task.name for task in track.generalization],
    }
    table = {side: _means(records, tasks) for side, tasks in sides.items()}
    seen: dict[str, list[float | None]] = {
        "held_in_vs_generalization": [
            _agreement(means, table["generalization"].get(seed, {}))
            for seed, means in table["held_in"].items()
        ]
    }
    for side, seeds in table.items():
        pairs = itertools.combinations(seeds.values(), 2)
        seen[f"stability_{side}"] = [_agreement(one, two) for one, two in pairs]
    known = {key: [v for v in values if v is not None] for key, values in seen.items()}
    return {key: float(np.mean(values)) for key, values in known.items() if values}


def _means(
    records: Sequence[Mapping[str, Any]], tasks: Sequence[str]
) -> dict[int, dict[str, float]]:
    """Seed -> static method -> mean over the tasks; tuned configurations only."""
    table: dict[int, dict[str, float]] = {}
    for record in records:
        identity = record["identity"]
        scored = bool(tasks) and all(task in record["scores"] for task in tasks)
        if record["group"] == "static" and not identity.get("params") and scored:
            mean = float(np.mean([record["scores"][task] for task in tasks]))
            table.setdefault(identity["seed"], {})[identity["method"]] = mean
    return table


def _agreement(one: Mapping[str, float], two: Mapping[str, float]) -> float | None:
    """Rank correlation over the methods that both have."""
    names = sorted(set(one) & set(two))
    return spearman([one[name] for name in names], [two[name] for name in names])
