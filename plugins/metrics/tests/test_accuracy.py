from __future__ import annotations

import pytest

from mtk.loading import resolve
from mtk_metrics.accuracy import score
from mtk_metrics.plugin import mtk_metrics


def test_one_score_per_item() -> None:
    assert score(predictions=["a", "b"], references=["a", "c"]) == [1.0, 0.0]


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        score(predictions=[1], references=[1, 2])


def test_declaration_has_a_direction_and_a_range() -> None:
    (metric,) = (m for m in mtk_metrics() if m.name == "accuracy")
    assert metric.higher_is_better
    assert (metric.low, metric.high) == (0.0, 1.0)


def test_every_metric_can_be_called() -> None:
    for metric in mtk_metrics():
        assert callable(resolve(metric.target)), metric.name
