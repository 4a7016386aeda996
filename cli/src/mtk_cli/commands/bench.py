"""``mtk bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtk.errors import ParameterError, UsageError
from mtk.parameters import parse
from mtk_cli import render
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
from mtk_cli.render import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtk.protocol import Bench

LONGEST_MESSAGE = 3


@declare(
    "bench",
    examples=(
        "mtk bench",
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
@click.option("--track", default="digits-clip", show_default=True, help="The track.")
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
    track: str,
    params: tuple[str, ...],
    seeds: tuple[tuple[int, ...], ...],
    options: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **more: Any,
) -> ExitCode:
    """Score merging methods on a track under one protocol, side by side.

    Only what has no record yet is computed; the table shows it among the others.
    Parameters that are not fixed are chosen on held-in validation data from the declared
    grid. Stop it at any time and run it again: finished records are kept.
    """
    if params and not methods:
        raise UsageError("--param belongs to a method; name one with --method")
    from mtk_cli.progress import Reporter

    with Reporter(quiet=quiet or more["dry_run"], verbose=verbose) as reporter:
        reporter("starting", None)
        import mtk

        result = mtk.bench(
            methods=methods,
            track=track,
            params=parse(params),
            seeds=list(dict.fromkeys(seed for group in seeds for seed in group)) or [0],
            options=_options(options),
            report=reporter,
            **more,
        )
    if as_json:
        render.json_text(_as_json(result))
    elif more["dry_run"]:
        _write_plan(result)
    elif result.rows:
        _write_result(result, more["results"], verbose=verbose)
    if not as_json:
        _write_rest(result)
    return _exit_code(result, methods)


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    try:
        return parse(pairs)
    except ParameterError as error:
        raise ParameterError(str(error).replace("--param", "--option")) from error


def _write_plan(result: Bench) -> None:
    plan = result.plan
    state = [(item, "to run") for item in plan.todo]
    state += [(item, "done") for item in plan.done]
    rows = [
        (item.name, item.kind, str(item.seed), str(len(item.trials)), text)
        for item, text in state
    ]
    columns = (
        Column("method"),
        Column("kind"),
        Column("seed", right=True),
        Column("trials", right=True),
        Column("state"),
    )
    render.table(columns, ("", rows))
    render.line()
    render.line(f"{len(plan.todo)} to run, {len(plan.done)} done already.")


def _write_result(result: Bench, folder: Path, *, verbose: bool) -> None:
    from mtk_cli.scoreboard import LEGEND, write_table

    track = result.plan.track.item
    seeds = ", ".join(map(str, result.plan.seeds))
    count = f"{len(track.held_in)} held-in and {len(track.generalization)} other cells"
    render.line(f"{track.name}: {count}; seeds {seeds}", "bold")
    write_table(result.rows, verbose=verbose)
    render.line()
    render.line("\n".join(LEGEND))
    for name, value in result.facts.items():
        render.line(
            f"{name.replace('_', ' ').capitalize()}: rank correlation {value:.2f}."
        )
    render.line(f"Records: {folder / track.name}")


def _write_rest(result: Bench) -> None:
    """What was not run and what failed, each with its reason."""
    if result.plan.skipped:
        render.line()
        render.line("Not run:", "bold")
        for skipped in result.plan.skipped:
            render.line(f"  {skipped.method}: {skipped.reason}")
    if result.failures:
        render.line()
        render.line("Failed:", "red")
        for failure in result.failures:
            message = "\n    ".join(failure.message.splitlines()[:LONGEST_MESSAGE])
            render.line(f"  {failure.method} (seed {failure.seed}): {message}")


def _as_json(result: Bench) -> dict[str, Any]:
    plan = result.plan
    items = [(item, "todo") for item in plan.todo] + [
        (item, "done") for item in plan.done
    ]
    return {
        "track": plan.track.item.name,
        "track_version": plan.track.item.version,
        "seeds": plan.seeds,
        "plan": [
            {
                "method": item.qualified,
                "name": item.name,
                "kind": item.kind,
                "seed": item.seed,
                "trials": len(item.trials),
                "state": state,
                "record": item.path,
            }
            for item, state in items
        ],
        "skipped": plan.skipped,
        "rows": result.rows,
        "failures": result.failures,
        "facts": result.facts,
    }


def _exit_code(result: Bench, methods: Sequence[str]) -> ExitCode:
    if result.failures:
        return ExitCode.FAILED
    if any(
        _asked_for(item, methods) for item in (*result.plan.todo, *result.plan.done)
    ):
        return ExitCode.DONE
    render.note("nothing to run: no method that was asked for can run on this track")
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
