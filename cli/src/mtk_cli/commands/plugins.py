"""``mtk plugins``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mtk.loading import load
from mtk_cli import render
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option
from mtk_cli.render import Column

if TYPE_CHECKING:
    from mtk.loading import Plugin, Registry

KINDS = ("methods", "tracks", "adapters", "metrics", "recipes", "track_formats")


@declare(
    "plugins",
    examples=("mtk plugins", "mtk plugins --timings", "mtk plugins --json"),
)
@click.option("--timings", is_flag=True, help="Show how long each takes to import.")
@json_option
def command(timings: bool, as_json: bool) -> ExitCode:
    """List the installed plugins, what each offers, and what is wrong with any.

    A broken plugin never stops mtk; its distribution, version, entry point and the cause
    are listed here. MTK_PLUGINS selects plugins (a comma list; empty for none).
    """
    registry = load()
    if as_json:
        render.json_text(_as_json(registry))
        return ExitCode.DONE
    if registry.plugins:
        columns = [Column("plugin"), Column("version"), Column("entry point")]
        columns += [Column("import s", right=True)] if timings else []
        columns.append(Column("offers", fold=True))
        rows = [_row(registry, plugin, timings) for plugin in registry.plugins]
        render.table(columns, ("", rows))
    else:
        render.note("no plugins are installed (or MTK_PLUGINS selects none)")
    _problems(registry)
    return ExitCode.DONE


def _offers(registry: Registry, plugin: Plugin) -> dict[str, list[str]]:
    return {
        kind: [
            provided.item.name
            for provided in getattr(registry, kind)
            if provided.plugin == plugin
        ]
        for kind in KINDS
    }


def _word(kind: str, count: int) -> str:
    words = {"recipes": "recipe formats", "track_formats": "track formats"}
    many = words.get(kind, kind)
    return many if count > 1 else many[:-1]


def _row(registry: Registry, plugin: Plugin, timings: bool) -> list[Any]:
    offers = [
        f"{len(names)} {_word(kind, len(names))}"
        for kind, names in _offers(registry, plugin).items()
        if names
    ]
    cells: list[Any] = [
        (plugin.distribution, "bold"),
        plugin.version,
        plugin.entry_point,
    ]
    if timings:
        heavy = " (imports torch)" if plugin.imported_torch else ""
        cells.append((f"{plugin.seconds:.3f}{heavy}", "red" if heavy else ""))
    return [*cells, ", ".join(offers) or "nothing"]


def _problems(registry: Registry) -> None:
    for problem in registry.problems:
        render.line(f"problem: {problem}", "red")
    for name, qualified in registry.ambiguous().items():
        render.line(f"ambiguous: {name!r}; write {' or '.join(qualified)}", "yellow")
    for plugin in registry.plugins:
        if plugin.imported_torch:
            render.line(
                f"slow: {plugin.distribution} {plugin.version} ({plugin.entry_point}) "
                "imports torch when it is loaded, which slows every command",
                "yellow",
            )


def _as_json(registry: Registry) -> dict[str, Any]:
    return {
        "plugins": [
            {**render.plain(plugin), "offers": _offers(registry, plugin)}
            for plugin in registry.plugins
        ],
        "problems": registry.problems,
        "ambiguous": registry.ambiguous(),
    }
