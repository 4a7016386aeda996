"""``mtk check``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from mtk.errors import UsageError
from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option, quiet_option
from mtk_cli.selection import mention_problems, methods_in, registry_for

if TYPE_CHECKING:
    from mtk.loading import Provided, Registry

STYLES = {"passed": "green", "failed": "red", "unexpected pass": "red"}


@declare(
    "check",
    examples=(
        "mtk check my_merge",
        "mtk check ./my_merge.py",
        "mtk check --all --json",
    ),
)
@click.argument("names", nargs=-1, metavar="[NAME|FILE.py]...")
@click.option("--all", "everything", is_flag=True, help="Check all installed methods.")
@json_option
@quiet_option
def command(
    names: tuple[str, ...], everything: bool, as_json: bool, quiet: bool
) -> ExitCode:
    """Test that methods keep the contract and everything they declare.

    Every check is listed on every run; with --quiet only those that went wrong.
    """
    if everything == bool(names):
        raise UsageError("give either the name of a method, a file, or --all")
    registry = registry_for(names)
    chosen = (
        registry.methods
        if everything
        else [found for name in names for found in methods_in(registry, name)]
    )
    if not chosen:
        render.note("no methods are installed, so there is nothing to check")
        return ExitCode.NOTHING
    reports = []
    for provided in chosen:
        report = _check(provided, registry)
        reports.append((provided, report))
        if not as_json:
            _write(provided, report, quiet=quiet)
    if as_json:
        render.json_text({"methods": [_as_json(*pair) for pair in reports]})
    mention_problems(registry)
    return ExitCode.DONE if all(report.ok for _, report in reports) else ExitCode.FAILED


def _check(provided: Provided[Any], registry: Registry) -> Any:
    from mtk.testing import check_method

    return check_method(provided, registry=registry)


def _write(provided: Provided[Any], report: Any, *, quiet: bool) -> None:
    render.line(f"{provided.qualified} {provided.plugin.version}", "bold")
    for result in report.results:
        wrong = result.outcome in ("failed", "unexpected pass")
        if quiet and not wrong:
            continue
        reason = f" ({result.reason})" if result.reason else ""
        style = STYLES.get(result.outcome, "")
        render.line(f"  {result.outcome:16} {result.id}{reason}", style)
        if wrong and result.message:
            for line in result.message.splitlines():
                render.line(f"      {line}")
    render.line(report.summary())


def _as_json(provided: Provided[Any], report: Any) -> dict[str, Any]:
    return {
        "method": provided.qualified,
        "version": provided.plugin.version,
        "ok": report.ok,
        "summary": report.summary(),
        "counts": dict(Counter(result.outcome for result in report.results)),
        "results": [
            {
                "id": result.id,
                "outcome": result.outcome,
                "message": result.message,
                "reason": result.reason,
            }
            for result in report.results
        ],
    }
