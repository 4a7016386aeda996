"""Declarations in words: parameters, needs, cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.errors import MtkError
from mtk_cli import render
from mtk_cli.selection import methods_in, registry_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

    from mtk.declare import Method, Metric, Needs, Param, Task, Track
    from mtk.loading import Provided

INVARIANTS = ("symmetric", "idempotent", "identity_at_zero")


def default_text(param: Param) -> str:
    """The default as ``--param`` takes it; "chosen" where the method chooses."""
    return "chosen" if param.default is None else render.value_text(param.default)


def range_text(param: Param) -> str:
    """Allowed values: ``a | b``, ``0 .. 1``, ``> 0``."""
    if param.choices:
        return " | ".join(param.choices)
    low = "" if param.low is None else f"{param.low:g}"
    high = "" if param.high is None else f"{param.high:g}"
    if low and high:
        return f"{low} {'<' if param.open_low else '..'} {high}"
    if low:
        return f"{'>' if param.open_low else '>='} {low}"
    return f"<= {high}" if high else "any"


def needs_text(method: Method) -> str:
    """What a method needs beside experts, in a few words."""
    needs = method.needs
    words = ["base"] if needs.base is True else []
    words += needs.statistics
    if needs.data != "none":
        words.append(f"{needs.data} data")
    if needs.gradients:
        words.append("gradients")
    return ", ".join(words) or "-"


def experts_text(needs: Needs) -> str:
    """How many experts a method takes."""
    low, high = needs.experts
    if high is None:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"


def cells_text(track: Track) -> str:
    """How many cells of which part a track has."""
    text = f"{len(track.held_in)} held-in and {len(track.generalization)} other cells"
    count = len(track.abilities)
    return f"{text}, {count} of base ability" if count else text


def part_of(task: Task) -> str:
    """The part of the grid that a cell belongs to."""
    if task.ability:
        return "base ability"
    return "held-in" if task.held_in else "generalization"


def name_in(offered: Sequence[Provided[Any]], provided: Provided[Any]) -> str:
    """The shortest name that is not ambiguous."""
    same = [other for other in offered if other.item.name == provided.item.name]
    return provided.item.name if len(same) == 1 else provided.qualified


def origin(provided: Provided[Any]) -> str:
    """Distribution and version."""
    return f"{provided.plugin.distribution} {provided.plugin.version}"


def describe(provided: Provided[Any]) -> dict[str, Any]:
    """A declaration and its origin, for JSON."""
    return {
        "qualified": provided.qualified,
        "distribution": provided.plugin.distribution,
        "version": provided.plugin.version,
        "entry_point": provided.plugin.entry_point,
        **render.plain(provided.item),
    }


def write_parameters(formatter: click.HelpFormatter, names: Sequence[str]) -> None:
    """Add the parameters of the named methods to a help text."""
    for name in names:
        try:
            found = methods_in(registry_for([name]), name)
        except MtkError as error:
            with formatter.section(f"Parameters of {name}"):
                formatter.write_text(str(error).splitlines()[0])
            continue
        for provided in found:
            with formatter.section(f"Parameters of {provided.item.name}"):
                rows = [_help_row(param) for param in provided.item.params]
                if rows:
                    formatter.write_dl(rows)
                else:
                    formatter.write_text("none")


def _help_row(param: Param) -> tuple[str, str]:
    facts = [param.type.replace("_", " "), range_text(param)]
    facts = [fact for fact in facts if fact != "any"]
    if param.grid:
        facts.append("bench tries " + ", ".join(map(render.value_text, param.grid)))
    return (
        f"{param.name}={default_text(param)}",
        f"{param.doc} ({'; '.join(facts)})".strip(),
    )


def metric_range(metric: Metric) -> str:
    """Smallest and largest value of a metric."""
    low = "-inf" if metric.low is None else f"{metric.low:g}"
    return f"{low} .. {'inf' if metric.high is None else f'{metric.high:g}'}"
