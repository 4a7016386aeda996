"""``mtk list-adapters``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk_cli.listing import show_all
from mtk_cli.options import declare, json_option
from mtk_cli.render import Column

if TYPE_CHECKING:
    from mtk.declare import Adapter
    from mtk_cli.exits import ExitCode

COLUMNS = (
    Column("kind"),
    Column("views", fold=True),
    Column("formats", fold=True),
    Column("summary", fold=True),
)


@declare(
    "list-adapters",
    examples=("mtk list-adapters", "mtk list-adapters --json", "mtk show full"),
)
@json_option
def command(as_json: bool) -> ExitCode:
    """List the installed adapters: what each opens, and the views it offers."""
    hint = "install mtk-adapters-full to open safetensors files"
    return show_all("adapters", COLUMNS, _cells, as_json=as_json, hint=hint)


def _cells(adapter: Adapter) -> tuple[str, ...]:
    views, formats = ", ".join(adapter.views), ", ".join(adapter.formats)
    return adapter.kind, views, formats or "-", adapter.summary
