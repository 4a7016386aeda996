"""Accuracy: 1 where prediction and reference are equal, else 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def score(
    *, predictions: Sequence[object], references: Sequence[object]
) -> list[float]:
    """One score per item, in order.

    >>> score(predictions=[1, 2, 3], references=[1, 0, 3])
    [1.0, 0.0, 1.0]
    """
    return [
        float(prediction == reference)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
