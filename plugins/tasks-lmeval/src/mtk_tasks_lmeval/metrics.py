"""Scores that lm-evaluation-harness gave to single items, as metrics of mtk.

A prediction is a table: the harness's name of a metric -> the item's score, and
``score`` -> the score by the metric that ranks the cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
