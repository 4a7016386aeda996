"""What the four list commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.loading import load
from mtk_cli import render
from mtk_cli.declared import describe, name_in, origin
from mtk_cli.exits import ExitCode
from mtk_cli.selection import mention_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtk_cli.render import Cell, Column


def show_all(
    kind: str,
    columns: Sequence[Column],
    cells: Callable[[Any], tuple[str, ...]],
    *,
    as_json: bool,
    hint: str,
) -> ExitCode:
    """List everything of one kind, as a table or as JSON.

    Args:
        kind: ``methods``, ``tracks``, ``adapters`` or ``metrics``.
        columns: those between the name and the origin.
        cells: declaration -> the texts of these columns.
        as_json: print JSON.
        hint: what to do when there are none.
    """
    registry = load()
    offered = getattr(registry, kind)
    if as_json:
        render.json_text({kind: [describe(provided) for provided in offered]})
    elif offered:
        rows: list[tuple[Cell, ...]] = [
            (
                (name_in(offered, provided), "bold"),
                *cells(provided.item),
                (origin(provided), "dim"),
            )
            for provided in offered
        ]
        first, last = render.Column(kind[:-1]), render.Column("from", fold=True, drop=3)
        render.table((first, *columns, last), ("", rows))
    else:
        render.note(f"no {kind} are installed; {hint}")
    mention_problems(registry)
    return ExitCode.DONE
