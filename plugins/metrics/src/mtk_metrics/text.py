"""Metrics of generated text: one score per item."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def exact_match(
    *, predictions: Sequence[str], references: Sequence[str]
) -> list[float]:
    """Return 1.0 where the prediction is the reference, byte for byte, else 0.0."""
    pairs = zip(predictions, references, strict=True)
    return [float(prediction == reference) for prediction, reference in pairs]


def chrf(*, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return sacrebleu's sentence chrF2 as a fraction: overlap of character n-grams.

    N-grams of one to six characters without spaces; recall counts twice as much as
    precision (Popovic 2015).
    """
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    pairs = zip(predictions, references, strict=True)
    return [
        float(scorer.sentence_score(prediction, [reference]).score) / 100
        for prediction, reference in pairs
    ]
