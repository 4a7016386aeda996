"""What a row says beside its rank: every metric in every part of a track's grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mtk.intervals import half_width, half_width_of_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mtk.declare import Track
    from mtk.intervals import Draws

    Records = Sequence[Mapping[str, Any]]


@dataclass(slots=True, kw_only=True)
class Part:
    """Mean of one metric over the cells of one part that have it, and its half width."""

    mean: float
    interval: float
    tasks: dict[str, float] = field(default_factory=dict)


def parts_of(track: Track) -> dict[str, tuple[Any, ...]]:
    """Name of a part -> its cells."""
    return {
        "held_in": track.held_in,
        "generalization": track.generalization,
        "ability": track.abilities,
    }


def measures(
    group: Records, track: Track, draws: Mapping[str, Draws]
) -> dict[str, dict[str, Part]]:
    """Metric -> part -> mean, for the records of one configuration, one a seed.

    Metrics are in the order of the declaration; parts that were not scored are left out.
    """
    names = dict.fromkeys(name for task in track.tasks for name in task.metrics)
    result: dict[str, dict[str, Part]] = {name: {} for name in names}
    for part, cells in parts_of(track).items():
        for name in names:
            tasks = [task.name for task in cells if name in task.metrics]
            if tasks and all(t in record["scores"] for record in group for t in tasks):
                result[name][part] = _part(group, name, tasks, draws[part])
    return {name: parts for name, parts in result.items() if parts}


def _part(group: Records, metric: str, tasks: Sequence[str], draws: Draws) -> Part:
    cells = [[record["metrics"][task][metric] for task in tasks] for record in group]
    means = [_mean(cell["value"] for cell in row) for row in cells]
    if any("error" in cell for row in cells for cell in row):
        errors = [[float(cell.get("error") or 0.0) for cell in row] for row in cells]
        interval = half_width_of_errors(errors, means)
    else:
        interval = half_width([draws.mean(r, tasks, metric) for r in group], means)
    values = {
        task: _mean(row[place]["value"] for row in cells)
        for place, task in enumerate(tasks)
    }
    return Part(mean=_mean(means), interval=interval, tasks=values)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
