"""Scores that lm-evaluation-harness gave to single items, as metrics of mtk.

A prediction is a table: the harness's name of a metric -> the item's score, and
``score`` -> the score by the metric that ranks the cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.parameters import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtk_tasks_lmeval.spec import Cell

RANKING = "score"
# Metrics of the harness that are one number per item and better when higher.
KNOWN = {
    "acc": "accuracy",
    "acc_norm": "accuracy by likelihood divided by length",
    "acc_norm_bytes": "accuracy by likelihood divided by bytes",
    "acc_bytes": "accuracy by likelihood divided by bytes",
    "acc_mutual_info": "accuracy by likelihood over that without the question",
    "exact_match": "share of answers equal to the reference",
    "em": "share of answers equal to the reference",
    "f1": "F1 of words",
    "mc1": "share of items whose best answer is true",
    "mc2": "probability of the true answers",
    "prompt_level_strict_acc": "share of instructions followed to the letter",
    "prompt_level_loose_acc": "share of instructions followed",
}


def metric_name(name: str, *, ranks: bool) -> str:
    """The name under which mtk knows a metric of the harness.

    >>> metric_name("acc", ranks=True), metric_name("my own", ranks=True)
    ('lm_acc', 'lm_score')

    Raises:
        KeyError: it does not rank, and has no name of its own.
    """
    if name in KNOWN:
        return f"lm_{name}"
    if ranks:
        return f"lm_{RANKING}"
    raise KeyError(name)


def pick(
    name: str,
    *,
    predictions: Sequence[Mapping[str, float]],
    references: Sequence[object],
) -> list[float]:
    """One score per item, as the harness gave it."""
    pairs = zip(predictions, references, strict=True)
    return [prediction[name] for prediction, _ in pairs]


def scores_of(
    cell: Cell, sample: Mapping[str, Any], label: str, where: str
) -> dict[str, float]:
    """One item's scores by name, and the one that ranks.

    Raises:
        UsageError: the task has no such metric, or it is no number of an item.
    """
    scores: dict[str, float] = {}
    known = sample["metrics"]
    for name in cell.metrics:
        value: Any = sample[name] if name in known else None
        if not isinstance(value, int | float) and not hasattr(value, "__float__"):
            what = "gives no number per item" if name in known else "is unknown"
            close = "" if name in known else suggestion(name, known)
            raise UsageError(
                f"{where}: {name!r} {what}{close}\n"
                f"Metrics of {label!r}: {', '.join(known)}"
            )
        scores[name] = float(value)
    return scores | {RANKING: scores[cell.metrics[0]]}
