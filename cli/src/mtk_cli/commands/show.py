"""``mtk show``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mtk.errors import AmbiguousName, UnknownName
from mtk.loading import load
from mtk.parameters import suggestion
from mtk.track_files import is_track_file, track_in
from mtk_cli import render
from mtk_cli.declared import (
    INVARIANTS,
    cells_text,
    default_text,
    describe,
    experts_text,
    metric_range,
    origin,
    range_text,
)
from mtk_cli.exits import ExitCode
from mtk_cli.options import declare, json_option
from mtk_cli.render import Column
from mtk_cli.selection import (
    is_file,
    methods_in,
    registry_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtk.declare import Adapter, Method, Metric, Param, Track
    from mtk.loading import Provided, Registry

KINDS = ("method", "track", "adapter", "metric")
COLUMNS = (
    Column("parameter"),
    Column("type"),
    Column("default"),
    Column("range", fold=True),
    Column("bench tries", fold=True),
    Column("meaning", fold=True),
)


@declare(
    "show",
    examples=(
        "mtk show ties",
        "mtk show digits-clip",
        "mtk show ./my_method.py",
        "mtk show my_track.toml",
        "mtk show mtk-methods-weights:ties --json",
    ),
)
@click.argument("name")
@json_option
def command(name: str, as_json: bool) -> ExitCode:
    """Show everything declared under NAME: a method, track, adapter or metric.

    NAME may also be a file: a one-file plugin, or a track file, of which what is missing
    here is said as well.
    """
    registry = load()
    if is_track_file(registry, name):
        return _show_file(track_in(registry, name), as_json=as_json)
    found = _find(registry, name)
    if as_json:
        items = [{"kind": kind, **describe(provided)} for kind, provided in found]
        render.json_text({"items": items})
        return ExitCode.DONE
    for index, (kind, provided) in enumerate(found):
        if index:
            render.line()
        _show(kind, provided)
    return ExitCode.DONE


def _show_file(provided: Provided[Track], *, as_json: bool) -> ExitCode:
    """The track of a file, and whether it can run."""
    from mtk.models import default_cache, missing

    lacking = missing(default_cache(), provided.item)
    if as_json:
        item = {"kind": "track", **describe(provided)}
        more = {"runs_here": not lacking, "missing": lacking}
        render.json_text({"items": [{**item, **more}]})
        return ExitCode.DONE
    _show("track", provided)
    render.line()
    text = f"no, {len(lacking)} missing" if lacking else "yes"
    render.facts({"runs here": text})
    for phrase in lacking:
        render.facts({"missing": phrase})
    return ExitCode.DONE


def _find(registry: Registry, name: str) -> list[tuple[str, Provided[Any]]]:
    if is_file(name):
        registry = registry_for([name])
        return [("method", provided) for provided in methods_in(registry, name)]
    found: list[tuple[str, Provided[Any]]] = []
    for kind in KINDS:
        try:
            found.append((kind, getattr(registry, kind)(name)))
        except AmbiguousName:
            raise
        except UnknownName:
            continue
    if not found:
        known = [
            provided.item.name
            for kind in KINDS
            for provided in getattr(registry, f"{kind}s")
        ]
        raise UnknownName(
            f"nothing is called {name!r}{suggestion(name, known)} "
            "(mtk list-methods, list-tasks, list-adapters and list-metrics show all)"
        )
    return found


def _show(kind: str, provided: Provided[Any]) -> None:
    item = provided.item
    render.line(f"{item.name} ({kind})", "bold")
    render.line(item.summary)
    render.line()
    parts: dict[str, Callable[[Any], dict[str, str]]] = {
        "method": _method,
        "track": _track,
        "adapter": _adapter,
        "metric": _metric,
    }
    facts = {
        **parts[kind](item),
        "from": f"{origin(provided)}, entry point {provided.plugin.entry_point}",
        "target": render.target_name(item.target),
    }
    render.facts({label: text for label, text in facts.items() if text})
    if kind == "method":
        _parameters("Parameters", item.params)
    elif kind == "track":
        _parameters("Protocol fields (mtk bench --option KEY=VALUE)", item.options)


_BASE = {"True": "needed", "False": "not needed", "optional": "optional"}


def _method(method: Method) -> dict[str, str]:
    needs = method.needs
    holds = [name.replace("_", " ") for name in INVARIANTS if getattr(method, name)]
    return {
        "paper": method.paper,
        "family": method.family,
        "scope": method.scope,
        "output": method.output,
        "base": _BASE[str(needs.base)],
        "experts": experts_text(needs),
        "statistics": ", ".join(needs.statistics),
        "data": "" if needs.data == "none" else f"{needs.data}, from {needs.split}",
        "gradients": "of the merged model" if needs.gradients else "",
        "outputs": ", ".join(needs.outputs),
        "checkpoints": ", ".join(needs.checkpoints),
        "architecture": "any" if needs.architecture == "any" else "",
        "task at use": "must be known" if needs.task_at_inference else "",
        "random": "yes; the parameter seed decides" if method.stochastic else "",
        "holds": ", ".join(holds),
    }


def _track(track: Track) -> dict[str, str]:
    return {
        "setting": track.setting,
        "version": track.version,
        "base": track.base,
        "adapter": track.adapter,
        "output": track.output,
        "cells": cells_text(track),
        "held-in": ", ".join(task.name for task in track.held_in),
        "generalization": ", ".join(task.name for task in track.generalization),
        "base ability": ", ".join(task.name for task in track.abilities),
        "experts": _experts(track),
        "metrics": "; ".join(
            dict.fromkeys(", ".join(task.metrics) for task in track.tasks)
        ),
        "merged": ", ".join(track.merge),
        "source": track.source,
        "licence": track.licence,
    }


def _experts(track: Track) -> str:
    """The experts of the held-in cells, where they are models that the user names."""
    named = [(task.name, getattr(task, "expert", "")) for task in track.held_in]
    return "; ".join(f"{cell}: {expert}" for cell, expert in named if expert)


def _adapter(adapter: Adapter) -> dict[str, str]:
    return {
        "kind": adapter.kind,
        "views": ", ".join(adapter.views),
        "formats": ", ".join(adapter.formats),
    }


def _metric(metric: Metric) -> dict[str, str]:
    return {
        "better": "higher" if metric.higher_is_better else "lower",
        "range": metric_range(metric),
        "scores": "each item" if metric.kind == "item" else "a whole cell",
    }


def _parameters(title: str, params: Sequence[Param]) -> None:
    render.line()
    if not params:
        render.line(f"{title}: none")
        return
    rows = [
        (
            param.name,
            param.type.replace("_", " "),
            default_text(param),
            range_text(param),
            ", ".join(map(render.value_text, param.grid)) or "-",
            param.doc,
        )
        for param in params
    ]
    render.line(title, "bold")
    render.table(COLUMNS, ("", rows))
