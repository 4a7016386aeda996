"""The track ``cldr-t5`` together with the metrics it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mtk.loading import load, resolve

if TYPE_CHECKING:
    from pathlib import Path

track_of = pytest.importorskip("mtk_tasks_text.track")


def test_true_answers_score_1_by_every_metric_and_cut_ones_do_not(
    tmp_path: Path,
) -> None:
    registry = load()
    track = track_of.CldrT5(cache=tmp_path, seed=0, options={})
    for task in registry.track("cldr-t5").item.tasks:
        labels = track.data(task.name, "validation")["labels"]
        cut = [label[:-1] for label in labels]
        for name in task.metrics:
            metric = registry.metric(name).item
            score = resolve(metric.target)
            assert metric.kind == "item"
            right = score(predictions=labels, references=labels)
            assert list(right) == pytest.approx([1.0] * len(labels))
            assert max(score(predictions=cut, references=labels)) < 1
