"""``mtk bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtk.errors import MtkError, ParameterError, UsageError
from mtk.parameters import parse
from mtk_cli import outcome, render
from mtk_cli.exits import ExitCode
from mtk_cli.options import (
    Seeds,
    complete_method,
    declare,
    json_option,
    param_option,
    quiet_option,
    verbose_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtk.protocol import Bench


@declare(
    "bench",
    examples=(
        "mtk bench",
        "mtk bench --track digits-clip",
        "mtk bench --method ties --method ./my_method.py",
        "mtk bench --method ties -p density=0.1 --seed 0..4",
        "mtk bench --method ties --help",
        "mtk bench --dry-run",
    ),
)
@click.option(
    "-m",
    "--method",
    "methods",
    multiple=True,
    metavar="NAME|FILE.py",
    shell_complete=complete_method,
    help="A method, or a one-file plugin; may be repeated.  [default: all installed]",
)
@click.option("--track", help="The track.  [default: every embedded one, in turn]")
@param_option
@click.option(
    "--seed",
    "seeds",
    type=Seeds(),
    multiple=True,
    metavar="0|0..4|0,2,3",
    help="Seeds, each a repetition of everything.  [default: 0]",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A protocol field of the track (mtk show TRACK lists them); may be repeated.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("mtk-results"),
    show_default=True,
    envvar="MTK_RESULTS",
    show_envvar=True,
    help="The folder of records.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Most points of its grid tried for a method.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    envvar="MTK_JOBS",
    show_envvar=True,
    help="Worker processes; 0 for none.  [default: one per core]",
)
@click.option("--dry-run", is_flag=True, help="Print the plan, and run nothing.")
@json_option
@quiet_option
@verbose_option
def command(
    *,
    methods: tuple[str, ...],
    track: str | None,
    params: tuple[str, ...],
    seeds: tuple[tuple[int, ...], ...],
    options: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **more: Any,
) -> ExitCode:
    """Score merging methods on tracks under one protocol, side by side.

    Only what has no record yet is computed; the table shows it among the others.
    Parameters that are not fixed are chosen on held-in validation data from the declared
    grid. Stop it at any time and run it again: finished records are kept.
    """
    if params and not methods:
        raise UsageError("--param belongs to a method; name one with --method")
    if options and track is None:
        raise UsageError("--option belongs to a track; name one with --track")
    tracks = [track] if track else _embedded()
    request: dict[str, Any] = {
        "methods": methods,
        "params": parse(params),
        "seeds": list(dict.fromkeys(seed for group in seeds for seed in group)) or [0],
        "options": _options(options),
        **more,
    }
    documents, codes, errors = [], [], []
    for name in tracks:
        try:
            result = _run(name, request, quiet, verbose, alone=track is not None)
        except MtkError as error:  # of this track; others may do
            errors.append((name, error))
            continue
        codes.append(_exit_code(result, methods))
        if as_json:
            documents.append(outcome.as_json(result))
            continue
        if len(codes) > 1:
            render.line()
        outcome.write(result, more["results"], plan=more["dry_run"], verbose=verbose)
    if not codes:
        raise errors[0][1]
    for name, failure in errors:
        render.error(f"{name}: {failure}")
        codes.append(ExitCode.FAILED)
    if as_json:
        render.json_text(documents[0] if track else {"tracks": documents})
    return _joint(codes)


def _embedded() -> list[str]:
    """Names of all installed tracks that run as they are."""
    from mtk.loading import load
    from mtk_cli.declared import name_in

    tracks = load().tracks
    names = [name_in(tracks, found) for found in tracks if found.item.embedded]
    if not names:
        raise UsageError("no embedded track is installed; install mtk-tasks-vision")
    return names


def _run(
    track: str, request: dict[str, Any], quiet: bool, verbose: bool, *, alone: bool
) -> Bench:
    """One benchmark; its messages name the track if there are others."""
    from mtk_cli.progress import Reporter

    with Reporter(quiet=quiet or request["dry_run"], verbose=verbose) as reporter:

        def report(message: str, share: float | None = None) -> None:
            reporter(message if alone else f"{track}: {message}", share)

        report("starting")
        import mtk

        return mtk.bench(track=track, report=report, **request)


def _joint(codes: Sequence[ExitCode]) -> ExitCode:
    """Failed if any failed, and nothing to run only if no track had anything."""
    if ExitCode.FAILED in codes:
        return ExitCode.FAILED
    return ExitCode.DONE if ExitCode.DONE in codes else ExitCode.NOTHING


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    try:
        return parse(pairs)
    except ParameterError as error:
        raise ParameterError(str(error).replace("--param", "--option")) from error


def _exit_code(result: Bench, methods: Sequence[str]) -> ExitCode:
    if result.failures:
        return ExitCode.FAILED
    if any(
        _asked_for(item, methods) for item in (*result.plan.todo, *result.plan.done)
    ):
        return ExitCode.DONE
    track = result.plan.track.item.name
    render.note(f"nothing to run on {track}: no method that was asked for can")
    return ExitCode.NOTHING


def _asked_for(item: Any, methods: Sequence[str]) -> bool:
    """Whether an item of the plan is one of the named methods (any, if none is named)."""
    from mtk_cli.selection import is_file

    if item.kind != "method":
        return False
    plugin = item.provided.plugin
    return not methods or any(
        plugin.entry_point == Path(name).name
        if is_file(name)
        else name.replace("-", "_") in (item.name, item.qualified.replace("-", "_"))
        for name in methods
    )
