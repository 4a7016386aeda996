"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk

if TYPE_CHECKING:
    from collections.abc import Iterator


@mtk.hookimpl
def mtk_metrics() -> Iterator[mtk.Metric]:
    yield mtk.Metric(
        name="accuracy",
        target="mtk_metrics.accuracy:score",
        summary="Share of predictions equal to the reference",
    )
