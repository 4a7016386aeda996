"""``mtk list-tasks``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mtk.loading import load
from mtk.track_files import track_in
from mtk_cli import render
from mtk_cli.declared import cells_text, describe, name_in, origin, part_of
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option
from mtk_cli.render import Column
from mtk_cli.selection import mention_problems

if TYPE_CHECKING:
    from mtk.declare import Track
    from mtk.loading import Provided

COLUMNS = (
    Column("cell"),
    Column("part"),
    Column("factors", fold=True),
    Column("metrics", fold=True),
)


@declare(
    "list-tasks",
    examples=(
        "mtk list-tasks",
        "mtk list-tasks --track digits-clip",
        "mtk list-tasks --track my_track.toml",
        "mtk list-tasks --json",
    ),
)
@click.option(
    "--track", metavar="NAME|FILE", help="Only the cells of this track or track file."
)
@json_option
def command(track: str | None, as_json: bool) -> ExitCode:
    """List the installed tracks and the cells of each.

    Each held-in cell has one expert; generalization cells have none. Cells of base
    ability are what the base can do, and no expert is trained for.
    """
    registry = load()
    tracks = [track_in(registry, track)] if track else registry.tracks
    if as_json:
        render.json_text({"tracks": [describe(provided) for provided in tracks]})
    elif tracks:
        sections = [
            (_title(name_in(tracks, provided), provided), _rows(provided.item))
            for provided in tracks
        ]
        render.table(COLUMNS, *sections)
    else:
        render.note("no tracks are installed; install mtk-tasks-vision")
    mention_problems(registry)
    return ExitCode.DONE


def _title(name: str, provided: Provided[Track]) -> str:
    track = provided.item
    cells = cells_text(track)
    return f"{name}: {track.summary} ({cells}, {origin(provided)})"


def _rows(track: Track) -> list[tuple[Any, ...]]:
    return [
        (
            task.name,
            part_of(task),
            ", ".join(f"{factor}={level}" for factor, level in task.factors) or "-",
            ", ".join(task.metrics),
        )
        for task in track.tasks
    ]
