"""What ``mtk bench`` says of one track: its plan, tables, notes, and all of it as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk_cli import render
from mtk_cli.declared import cells_text
from mtk_cli.render import Column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mtk.protocol import Bench
    from mtk.scores import Row

LONGEST_MESSAGE = 3
# How held-in and generalization are correlated over methods in arXiv 2409.18314.
PAPER = {
    "image classification": "loosely positive",
    "image generation": "loosely positive",
    "language": "negative",
}


def write(result: Bench, folder: Path, *, plan: bool, verbose: bool) -> None:
    """Write everything: the plan alone, or the tables and what they stand on."""
    if plan:
        _write_plan(result)
    elif result.rows:
        _write_result(result, folder, verbose=verbose)
    _write_rest(result)


def _write_plan(result: Bench) -> None:
    plan = result.plan
    render.line(f"{plan.track.item.name}: the plan", "bold")
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
    from mtk_cli.scoreboard import (
        FORGETTING,
        LEGEND,
        has_ability,
        write_metrics,
        write_table,
    )

    track = result.plan.track.item
    seeds = ", ".join(map(str, result.plan.seeds))
    render.line(f"{track.name}: {cells_text(track)}; seeds {seeds}", "bold")
    write_table(result.rows, verbose=verbose)
    render.line()
    legend = (*LEGEND, *(FORGETTING if has_ability(result.rows) else ()))
    render.line("\n".join(legend))
    write_metrics(result.rows, track, result.metrics)
    _write_remarks(result)
    for note in result.notes:
        render.line(note)
    render.line("\n".join(findings(result.rows, result.facts, track.setting)))
    render.line(f"Records: {folder / track.name}")
    if result.sheets:
        render.line(f"Sheets: {len(result.sheets)} pictures (.png) beside the records")


def findings(
    rows: Sequence[Row], facts: Mapping[str, float], setting: str
) -> list[str]:
    """What the table says as a whole, and what the paper found in that setting."""
    from mtk_cli.scoreboard import percent

    found = []
    by_name = {row.name: row.held_in for row in rows if row.group == "baseline"}
    base, experts = by_name.get("pretrained"), by_name.get("experts")
    static = [r for r in rows if r.rank is not None and r.held_in is not None]
    if static and base is not None and experts is not None:
        between = sum(base < (row.held_in or 0) < experts for row in static)
        found.append(
            f"Held-in between base and experts: {between} of {len(static)} static methods."
        )
    best = min(static, key=lambda row: row.rank or 0, default=None)
    reference = next((row for row in static if row.reference), None)
    if best and reference and best.difference is not None and not best.reference:
        gain = percent(best.difference, best.difference_interval, sign=True)
        found.append(f"Held-in of {best.name} minus {reference.name}: {gain}.")
    for name, value in facts.items():
        text = f"{name.replace('_', ' ').capitalize()}: rank correlation {value:+.2f}"
        if name == "held_in_vs_generalization" and setting in PAPER:
            text += f"; {PAPER[setting]} in the paper's {setting}"
        found.append(f"{text}.")
    return found


def _write_remarks(result: Bench) -> None:
    """What statistics did otherwise than asked, and what they do not reach."""
    said: dict[str, list[str]] = {}
    for row in result.rows:
        remarks = list(row.notes)
        for statistic, names in row.without_statistic.items():
            count = (
                "1 merged tensor has"
                if len(names) == 1
                else f"{len(names)} merged tensors have"
            )
            remarks.append(f"{count} no {statistic} (--json names them)")
        for remark in remarks:
            known = said.setdefault(remark, [])
            if row.name not in known:
                known.append(row.name)
    for remark, names in said.items():
        render.line(f"{', '.join(names)}: {remark}.")


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


def as_json(result: Bench) -> dict[str, Any]:
    """The outcome of one track as a document."""
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
        "metrics": list(result.metrics.values()),
        "rows": result.rows,
        "sheets": result.sheets,
        "failures": result.failures,
        "facts": result.facts,
        "notes": result.notes,
    }
