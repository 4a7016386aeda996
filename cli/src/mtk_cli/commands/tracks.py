"""``mtk tracks``: what tracks there are, and whether they can run here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mtk.loading import load
from mtk.track_files import track_in
from mtk_cli import render
from mtk_cli.commands._tracks_prepare import command as prepare
from mtk_cli.declared import describe, name_in, origin
from mtk_cli.exits import ExitCode
from mtk_cli.main import SUMMARIES
from mtk_cli.options import Command, Commands, json_option
from mtk_cli.render import Column
from mtk_cli.selection import mention_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtk.declare import Track
    from mtk.loading import Provided

COLUMNS = (
    Column("track"),
    Column("setting"),
    Column("held-in", right=True),
    Column("generalization", right=True),
    Column("base ability", right=True),
    Column("base", fold=True),
    Column("data from", fold=True),
    Column("licence", fold=True),
    Column("runs here", fold=True),
)


@click.group(
    "tracks",
    cls=Commands,
    examples=("mtk tracks list", "mtk tracks prepare domainnet-clip --root DIR"),
    short_help=SUMMARIES["tracks"],
)
def command() -> None:
    """See the tracks: grids of tasks on which merging methods are compared."""


@command.command(
    "list",
    cls=Command,
    examples=(
        "mtk tracks list",
        "mtk tracks list digits-clip my_track.toml",
        "mtk tracks list --json",
    ),
)
@click.argument("names", nargs=-1, metavar="[NAME|FILE]...")
@json_option
def listing(names: tuple[str, ...], as_json: bool) -> ExitCode:
    """List tracks: setting, cells, base, data, licence, and whether they run here.

    Without names these are the installed ones. Embedded tracks bring all they need;
    others want data or models of yours, and the last column says which.
    """
    from mtk.models import default_cache, missing

    registry = load()
    tracks = [track_in(registry, name) for name in names] or registry.tracks
    lacking = [missing(default_cache(), found.item) for found in tracks]
    pairs = list(zip(tracks, lacking, strict=True))
    if as_json:
        render.json_text(
            {"tracks": [{**describe(found), **facts(found, no)} for found, no in pairs]}
        )
    elif pairs:
        rows = [_row(name_in(tracks, found), found, no) for found, no in pairs]
        render.table(COLUMNS, ("", rows))
    else:
        render.note("no tracks are installed; install mtk-tasks-vision")
    mention_problems(registry)
    return ExitCode.DONE


def facts(provided: Provided[Track], lacking: list[str]) -> dict[str, Any]:
    """Counts of cells, and what is missing, for JSON."""
    track = provided.item
    return {
        "held_in": len(track.held_in),
        "generalization": len(track.generalization),
        "ability": len(track.abilities),
        "runs_here": not lacking,
        "missing": lacking,
    }


def runs_here(track: Track, lacking: Sequence[str]) -> str:
    """Whether a track can run here, and if not, what is missing."""
    if lacking:
        return f"no: {'; '.join(lacking)}"
    return "yes" if track.embedded else "yes (not embedded)"


def _row(name: str, provided: Provided[Track], lacking: list[str]) -> list[str]:
    track = provided.item
    return [
        name,
        track.setting,
        *(
            str(len(cells) or "-")
            for cells in (track.held_in, track.generalization, track.abilities)
        ),
        track.base or "-",
        track.source or origin(provided),
        track.licence or "-",
        runs_here(track, lacking),
    ]


command.add_command(prepare, "prepare")
