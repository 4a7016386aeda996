"""Parts of the reference that are written by cog: ``make docs`` and ``make test`` check them.

Each function prints Markdown. cog runs them from the pages, see ``reference/``.
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

import click

import mtk
from mtk import hookspecs

if TYPE_CHECKING:
    from mtk.declare import Method, Param
    from mtk.loading import Provided

_ORDER = ("static", "per_task", "routed")


def _methods() -> list[Provided[Method]]:
    ours = [
        m for m in mtk.load().methods if m.plugin.distribution.startswith("mtk-methods")
    ]
    return sorted(ours, key=lambda m: (_ORDER.index(m.item.output), m.item.name))


def methods_table() -> None:
    """One line per method."""
    print(
        "| method | what it does | scope | output | source |\n| --- | --- | --- | --- | --- |"
    )
    for provided in _methods():
        m = provided.item
        print(f"| `{m.name}` | {m.summary} | {m.scope} | {m.output} | {m.paper} |")


def requirements_table() -> None:
    """What each method needs: the practical requirements of the protocol, declared."""
    print(
        "| method | base | experts | statistics | data | gradients | tuned | random |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for provided in _methods():
        m, needs = provided.item, provided.item.needs
        low, high = needs.experts
        count = (
            f"{low} or more"
            if high is None
            else str(low)
            if low == high
            else f"{low}-{high}"
        )
        tuned = ", ".join(f"`{p.name}`" for p in m.params if p.grid) or "nothing"
        print(
            f"| `{m.name}` | {_yes(needs.base)} | {count} | {', '.join(needs.statistics) or '-'} "
            f"| {needs.data if needs.data != 'none' else '-'} | {_yes(needs.gradients)} | {tuned} "
            f"| {_yes(m.stochastic)} |"
        )


def parameters() -> None:
    """A section with a table for every method that has parameters."""
    for provided in _methods():
        if provided.item.params:
            print(f"\n### {provided.item.name}\n")
            print("| name | type | default | range | grid | meaning |")
            print("| --- | --- | --- | --- | --- | --- |")
            for p in provided.item.params:
                print(_parameter(p))


def _parameter(p: Param) -> str:
    grid = ", ".join(map(str, p.grid)) or "-"
    default = "chosen by the method" if p.default is None else f"`{p.default}`"
    return f"| `{p.name}` | {p.type} | {default} | {_range(p)} | {grid} | {p.doc} |"


def _range(p: Param) -> str:
    if p.choices:
        return " or ".join(p.choices)
    low = "" if p.low is None else f"{'>' if p.open_low else '≥'} {p.low:g}"
    high = "" if p.high is None else f"≤ {p.high:g}"
    return ", ".join(filter(None, (low, high))) or "any"


def _yes(value: bool | str) -> str:
    return {True: "yes", False: "-"}.get(value, str(value))  # type: ignore[call-overload]


def commands() -> None:
    """The help of every command, as it is printed at 90 columns."""
    from mtk_cli.main import cli

    os.environ["COLUMNS"] = "90"
    context = click.Context(
        cli, info_name="mtk", terminal_width=90, max_content_width=90
    )
    _help("mtk", cli, context)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(
            command,
            info_name=name,
            parent=context,
            terminal_width=90,
            max_content_width=90,
        )
        _help(f"mtk {name}", command, inner)


def _help(title: str, command: click.Command, context: click.Context) -> None:
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    print(f"\n## {title}\n\n```text\n{text}\n```")


def checks() -> None:
    """Every conformance check and why it matters."""
    from mtk.testing import CHECKS

    print("| check | why |\n| --- | --- |")
    for check in CHECKS:
        print(f"| `{check.id}` | {check.why} |")


def hooks() -> None:
    """The docstring of every hook."""
    for name in (
        "mtk_methods",
        "mtk_tasks",
        "mtk_adapters",
        "mtk_metrics",
        "mtk_recipes",
        "mtk_track_formats",
    ):
        print(f"\n## {name}\n\n{_docstring(getattr(hookspecs, name))}")


def declarations() -> None:
    """Signature and docstring of everything a plugin declares."""
    for kind in (
        mtk.Method,
        mtk.Needs,
        mtk.Param,
        mtk.Scan,
        mtk.Metric,
        mtk.Adapter,
        mtk.RecipeFormat,
        mtk.Task,
        mtk.Track,
        mtk.TrackFormat,
    ):
        _documented(kind)


def functions() -> None:
    """Signature and docstring of the Python API."""
    for item in (
        mtk.merge,
        mtk.bench,
        mtk.load,
        mtk.load_merged,
        mtk.inspect,
        mtk.Merged,
        mtk.LiveTask,
    ):
        _documented(item)


def _documented(item: Any) -> None:
    print(
        f"\n## {item.__name__}\n\n```python\n{item.__name__}{_signature(item)}\n```\n"
    )
    print(_docstring(item))


def _signature(item: Any) -> str:
    """One parameter a line; ``]]]`` is broken up, because it means something to cog."""
    lines, starred = [], False
    for parameter in inspect.signature(item).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("*,")
            starred = True
        default = (
            "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        )
        if "(" in default or "<" in default:
            default = " = ..."
        lines.append(
            f"{parameter.name}: {parameter.annotation}{default},".replace("]]]", "]] ]")
        )
    return "(\n    " + "\n    ".join(lines) + "\n)"


def _docstring(item: Any) -> str:
    """Google sections become bold words, their entries a list; code stays code."""
    lines, out, section = inspect.cleandoc(item.__doc__ or "").splitlines(), [], False
    for line in lines:
        if line.rstrip(":") in ("Args", "Returns", "Raises") and line.endswith(":"):
            section = True
            out += [f"**{line.rstrip(':')}**", ""]
        elif section and line.startswith("    ") and line[4:5] != " ":
            name, colon, rest = line.strip().partition(": ")
            out.append(f"- `{name}`: {rest}" if colon else f"- {line.strip()}")
        elif section and line.startswith("        "):
            out.append(f"  {line.strip()}")
        else:
            section = section and not line
            out.append(
                line.replace("``", "`").replace("::", ":") if line[:1] != " " else line
            )
    text = "\n".join(out)
    return (
        text.replace("``", "`")
        .replace(":class:", "")
        .replace(":func:", "")
        .replace(":meth:", "")
    )
