"""Scores of one cell: every metric of its declaration, on one model's predictions."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError
from mtk.loading import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtk.declare import Metric

    Cell = Mapping[str, "Score"]


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value, with one score per item, or with a standard error."""

    value: float
    items: list[float] | None = None
    error: float | None = None

    def plain(self, *, items: bool) -> dict[str, Any]:
        """For a record; ``items`` may stand elsewhere already."""
        if self.items is None:
            return {"value": self.value, "error": self.error}
        return {"value": self.value, **({"items": self.items} if items else {})}


def score(
    metric: Metric, predictions: Sequence[object], references: Sequence[object]
) -> Score:
    """Call a metric, and check what it gives."""
    found = resolve(metric.target)(predictions=predictions, references=references)
    if metric.kind == "set":
        value, error = (float(number) for number in found)
        _finite(metric, [value])
        return Score(value, error=error if math.isfinite(error) else None)
    items = [float(number) for number in found]
    if len(items) != len(references) or not items:
        raise CheckpointError(
            f"metric {metric.name!r} gave {len(items)} scores for {len(references)} items"
        )
    _finite(metric, items)
    return Score(statistics.fmean(items), items=items)


def _finite(metric: Metric, numbers: Sequence[float]) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise CheckpointError(f"metric {metric.name!r} gave a score that is no number")


def mean(cells: Sequence[Cell]) -> dict[str, Score]:
    """The mean over several models on the same items.

    The errors of set metrics are averaged too: the items are the same, so that they do
    not shrink with the number of models.
    """
    result = {}
    for name in cells[0]:
        scores = [cell[name] for cell in cells]
        value = statistics.fmean(score.value for score in scores)
        if scores[0].items is None:
            error = statistics.fmean(score.error or 0.0 for score in scores)
            result[name] = Score(value, error=error)
        else:
            columns = zip(*(score.items or [] for score in scores), strict=True)
            result[name] = Score(value, items=[statistics.fmean(c) for c in columns])
    return result
