"""``mtk list-metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk_cli.declared import metric_range
from mtk_cli.listing import show_all
from mtk_cli.options import declare, json_option
from mtk_cli.render import Column

if TYPE_CHECKING:
    from mtk.declare import Metric
    from mtk_cli.exits import ExitCode

COLUMNS = (Column("better"), Column("range"), Column("summary", fold=True))


@declare(
    "list-metrics",
    examples=("mtk list-metrics", "mtk list-metrics --json", "mtk show accuracy"),
)
@json_option
def command(as_json: bool) -> ExitCode:
    """List the installed metrics, with direction and range."""
    hint = "install mtk-metrics"
    return show_all("metrics", COLUMNS, _cells, as_json=as_json, hint=hint)


def _cells(metric: Metric) -> tuple[str, ...]:
    better = "higher" if metric.higher_is_better else "lower"
    return better, metric_range(metric), metric.summary
