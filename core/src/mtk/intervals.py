"""Bootstrap over items, shared by all rows of a table. Needs numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Replicates of the bootstrap; enough for a 95 % interval that moves by less than 0.1 points.
REPLICATES = 1000
Z95 = 1.96


class Draws:
    """Bootstrap weights over item ids, shared by all rows so that they stay paired.

    Args:
        records: of all rows.
        tasks: that are drawn together; items with equal ids are one draw. Cells of base
            ability have draws of their own, because their items are others.
    """

    def __init__(
        self, records: Sequence[Mapping[str, Any]], tasks: Iterable[str]
    ) -> None:
        names = set(tasks)
        ids = {
            i
            for record in records
            for task, values in record["ids"].items()
            if task in names
            for i in values
        }
        self._place = {item: index for index, item in enumerate(sorted(ids))}
        rng = np.random.default_rng(0)
        n = max(1, len(ids))
        self._weights = rng.multinomial(n, np.full(n, 1 / n), size=REPLICATES).astype(
            float
        )

    def task(self, scores: Sequence[float], ids: Sequence[int]) -> np.ndarray:
        """Replicates of a task's mean, (replicates,)."""
        weights = self._weights[:, [self._place[item] for item in ids]]
        means: np.ndarray = weights @ np.asarray(scores, float)
        drawn = weights.sum(1)
        # Of a small cell a replicate may draw no item; it then has the cell's own mean.
        own = float(np.mean(scores))
        ratio: np.ndarray = np.where(drawn > 0, means / np.maximum(drawn, 1), own)
        return ratio

    def mean(
        self, record: Mapping[str, Any], tasks: Sequence[str], metric: str | None = None
    ) -> np.ndarray:
        """Replicates of the mean over tasks, of the first metric or a named one."""
        values = [
            self.task(items_of(record, task, metric), record["ids"][task])
            for task in tasks
        ]
        mean: np.ndarray = np.mean(values, axis=0)
        return mean


def items_of(
    record: Mapping[str, Any], task: str, metric: str | None = None
) -> Sequence[float]:
    """One score per item; those of the first metric stand apart in a record."""
    found = record["metrics"][task][metric].get("items") if metric else None
    items: Sequence[float] = record["items"][task] if found is None else found
    return items


def half_width(replicates: Sequence[np.ndarray], means: Sequence[float]) -> float:
    """1.96 standard errors: items by bootstrap, seeds by their spread."""
    return float(
        Z95 * (float(np.var(np.mean(replicates, axis=0))) + _seeds(means)) ** 0.5
    )


def half_width_of_errors(
    errors: Sequence[Sequence[float]], means: Sequence[float]
) -> float:
    """1.96 standard errors of a mean over cells of set metrics.

    Args:
        errors: per seed, the standard error of every cell. Cells are taken as independent;
            seeds share the cells' items, so that their errors do not shrink.
        means: per seed, the mean over cells.
    """
    each = [sum(e * e for e in cells) / len(cells) ** 2 for cells in errors]
    return float(Z95 * (float(np.mean(each)) + _seeds(means)) ** 0.5)


def _seeds(means: Sequence[float]) -> float:
    """Variance of the mean over seeds."""
    return float(np.var(means, ddof=1)) / len(means) if len(means) > 1 else 0.0
