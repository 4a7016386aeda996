"""Measuring one item of a plan: tune on validation, score on test, count the cost."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import statistics as numbers
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mtk
from mtk import records
from mtk.loading import load, resolve
from mtk.making import one_thread
from mtk.merging import execute
from mtk.parameters import complete
from mtk.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtk.declare import Method, Track
    from mtk.loading import Registry
    from mtk.planner import Item
    from mtk.results import Merged
    from mtk.session import Scored

_sessions: dict[tuple[Any, ...], Session] = {}
_registry: Registry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all items of one benchmark have in common; travels to worker processes."""

    track: Track
    options: Mapping[str, Any]
    cache: Path
    results: Path
    found: Mapping[int, Mapping[str, Any]]


def start_worker(files: tuple[str, ...]) -> None:
    """Initialise a worker process: load plugins, one thread, live as long as the parent.

    An interrupt reaches the whole group of processes; the parent answers it and ends the
    workers. A parent that was killed ends nobody, so each worker watches for that.
    """
    global _registry  # noqa: PLW0603  one registry a process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _registry = load(files)
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_item(setting: Setting, item: Item) -> dict[str, Any]:
    """Measure an item in this process and write its record."""
    assert _registry is not None
    return measure(_registry, setting, item)


def measure(registry: Registry, setting: Setting, item: Item) -> dict[str, Any]:
    """Measure an item and write its record."""
    key = (setting.track.name, str(setting.options), item.seed, str(setting.cache))
    if key not in _sessions:
        _sessions.clear()  # one model at a time
        _sessions[key] = Session(
            registry,
            setting.track,
            seed=item.seed,
            options=setting.options,
            cache=setting.cache,
            found=setting.found[item.seed],
        )
    session = _sessions[key]
    with one_thread():
        body = (
            _baseline(session, item)
            if item.kind == "baseline"
            else _method(session, item)
        )
    record = {
        "schema": records.SCHEMA,
        "key": records.key_of(item.identity),
        "identity": item.identity,
        "name": item.name,
        "environment": _environment(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **body,
    }
    record |= _scores(session, record.pop("scored"))
    picture = record.pop("picture")
    record["sheet"] = picture is not None
    if picture is not None:
        records.write_sheet(setting.results, item.identity, picture)
    records.write(setting.results, record)
    return record


def _scores(session: Session, scored: Scored) -> dict[str, Any]:
    """What a record keeps of the scores: the first metric of each task apart."""
    items, metrics = {}, {}
    for task in session.track.tasks:
        if task.name not in scored:
            continue
        cell = scored[task.name]
        first, *_ = task.metrics
        items[task.name] = cell[first].items
        metrics[task.name] = {
            name: score.plain(items=name != first) for name, score in cell.items()
        }
    return {
        "items": items,
        "scores": {task: numbers.fmean(values or []) for task, values in items.items()},
        "metrics": metrics,
        "ids": {
            task: [int(i) for i in session.data(task, "test")["ids"]] for task in items
        },
    }


def _environment() -> dict[str, Any]:
    return {
        "mtk": mtk.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }


def _baseline(session: Session, item: Item) -> dict[str, Any]:
    """The base, every expert on its own task, or the multitask model."""
    paths = session.found["paths"]
    tasks = [task.name for task in session.track.tasks]
    picture = None
    if item.name == "experts":
        states = (_state(expert) for expert in session.experts)
        scored = session.score_each(states, "test")
    else:
        base = item.name == "pretrained"
        state = _state(session.base if base else session.open(Path(paths["multitask"])))
        scored = session.score(state, "test", tasks)
        picture = session.sheet(state)
    return {
        "group": "baseline",
        "params": {},
        "scored": scored,
        "picture": picture,
        "costs": {},
        "reference": False,
    }


def _state(checkpoint: Any) -> dict[str, Any]:
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def _method(session: Session, item: Item) -> dict[str, Any]:
    assert item.provided is not None
    method: Method = item.provided.item
    control = item.kind == "control"
    experts = session.random_experts() if control else session.experts
    resolve(method.target)  # so that no import is timed
    start, tried, best, statistics_seconds = time.perf_counter(), [], None, 0.0
    notes: list[str] = []
    for point in item.trials:
        params = complete(method.params, point, owner=method.name, experts=len(experts))
        most = session.track.most_steps
        if most is not None and "steps" not in point and params.get("steps", 0) > most:
            params["steps"] = most
            notes = [f"steps={most}, the most this track allows"]
        job, collected = session.job(method, params, experts)
        statistics_seconds = max(statistics_seconds, collected.seconds)
        notes += [note for note in collected.notes if note not in notes]
        merged = execute(job, workers=1)
        score = _validate(session, merged) if len(item.trials) > 1 else None
        trial = {
            "params": point,
            "score": score,
            "merge_seconds": merged.report.seconds,
        }
        tried.append(trial)
        if best is None or (score or 0) > best[0]:
            best = (score or 0, merged, point)
    assert best is not None
    tuning = time.perf_counter() - start
    _, merged, point = best
    return {
        "group": "control" if control else method.output,
        "reference": method.reference,
        "params": {**point},
        "trials": tried,
        "scored": session.score_merged(merged, "test", held_in_only=False),
        "picture": None
        if method.output == "per_task"  # many models, none of which is the result
        else session.sheet(merged.tensors, session.context(merged)),
        "notes": notes,
        "costs": _costs(merged, tried, tuning, statistics_seconds),
        "without_statistic": merged.report.without_statistic,
    }


def _validate(session: Session, merged: Merged) -> float:
    """Mean over held-in validation, of the metric that ranks."""
    scores = session.score_merged(merged, "validation", held_in_only=True)
    return numbers.fmean(
        scores[task.name][task.metrics[0]].value for task in session.track.held_in
    )


def _costs(
    merged: Merged,
    tried: list[dict[str, Any]],
    tuning: float,
    statistics_seconds: float,
) -> dict[str, Any]:
    return {
        "merge_seconds": numbers.median(trial["merge_seconds"] for trial in tried),
        "statistics_seconds": statistics_seconds,
        "tuning_seconds": tuning if len(tried) > 1 else 0.0,
        "trials": len(tried),
        "peak_bytes": merged.report.peak_bytes,
        "added_bytes": merged.added_bytes(),
    }
