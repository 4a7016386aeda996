"""``mtk list-methods``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk_cli.declared import needs_text
from mtk_cli.listing import show_all
from mtk_cli.options import declare, json_option
from mtk_cli.render import Column

if TYPE_CHECKING:
    from mtk.declare import Method
    from mtk_cli.exits import ExitCode

COLUMNS = (
    Column("output", drop=1),
    Column("scope", drop=2),
    Column("needs", fold=True),
    Column("summary", fold=True),
)


@declare(
    "list-methods",
    examples=("mtk list-methods", "mtk list-methods --json", "mtk show ties"),
)
@json_option
def command(as_json: bool) -> ExitCode:
    """List the installed merging methods, and what each needs beside the experts."""
    hint = "install mtk-methods-weights, or write one: mtk new-plugin my-merge"
    return show_all("methods", COLUMNS, _cells, as_json=as_json, hint=hint)


def _cells(method: Method) -> tuple[str, ...]:
    return method.output, method.scope, needs_text(method), method.summary
