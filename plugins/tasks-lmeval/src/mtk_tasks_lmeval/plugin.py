"""What this distribution offers to mtk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import mtk
from mtk_tasks_lmeval.metrics import KNOWN, RANKING, metric_name, pick

if TYPE_CHECKING:
    from collections.abc import Iterator


@mtk.hookimpl
def mtk_metrics() -> Iterator[mtk.Metric]:
    yield mtk.Metric(
        name=metric_name(RANKING, ranks=True),
        target=partial(pick, RANKING),
        summary="lm-evaluation-harness: the task's own metric",
        low=None,
        high=None,
    )
    for name, meaning in KNOWN.items():
        yield mtk.Metric(
            name=metric_name(name, ranks=False),
            target=partial(pick, name),
            summary=f"lm-evaluation-harness: {meaning}",
        )


@mtk.hookimpl
def mtk_track_formats() -> Iterator[mtk.TrackFormat]:
    yield mtk.TrackFormat(
        name="toml",
        target="mtk_tasks_lmeval.plugin:read_track",
        summary="A track of one's own: base, experts, cells of lm-evaluation-harness or JSONL",
        suffixes=(".toml",),
    )


def read_track(path: str) -> mtk.Track:
    """The track that a file describes."""
    from mtk_tasks_lmeval import load_track

    return load_track(path)[0]
