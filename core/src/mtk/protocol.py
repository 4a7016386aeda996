"""``mtk.bench``: the shared protocol, from installed methods to one table."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk import models, planner, records, scores
from mtk.errors import MtkError, UsageError
from mtk.loading import Plugin, Provided, load
from mtk.parameters import complete
from mtk.track_files import track_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mtk.declare import Method, Metric, Track
    from mtk.loading import Registry
    from mtk.planner import Item, Plan
    from mtk.scores import Row


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that was started and failed; the others went on."""

    method: str
    seed: int
    message: str


@dataclass(slots=True, kw_only=True)
class Bench:
    """A benchmark's plan and outcome.

    Args:
        facts: statements about the whole table.
        notes: what the track says of itself, such as what its judges can do at best.
        metrics: declarations of all metrics of the track, by name.
        sheets: key of a record -> the picture of what its model makes.
    """

    plan: Plan
    records: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    sheets: dict[str, Path] = field(default_factory=dict)


def bench(
    *,
    methods: Sequence[str] = (),
    track: str | Track = "digits-clip",
    params: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    options: Mapping[str, Any] | None = None,
    results: Path | str = "mtk-results",
    cache: Path | str | None = None,
    budget: int = 12,
    jobs: int | None = None,
    dry_run: bool = False,
    registry: Registry | None = None,
    report: Callable[[str, float | None], None] | None = None,
) -> Bench:
    """Score merging methods under the shared protocol.

    Only what has no record in ``results`` yet is computed; the table shows all that fits.
    Parameters that are not fixed are chosen on held-in validation from the declared grid;
    test items are scored once, with the chosen values.

    Args:
        methods: names, qualified names, or paths of one-file plugins; empty is all.
        track: name of a track, or a declaration.
        params: fixed values for ``methods``; they leave the grid.
        seeds: each trains its own experts and is a repetition of everything.
        options: the track's protocol fields, for example ``{"head_scope": "joint"}``.
        results: folder of records, made if absent; may be shared between machines.
        cache: folder for checkpoints and statistics.
        budget: most grid points tried per method.
        jobs: worker processes, one thread each; 0 runs everything in this process.
        registry: plugins to use instead of the installed ones, in this process only.
        dry_run: plan only.
        report: told what is going on, and the share done where it is known.

    Raises:
        UsageError: the request is wrong; nothing was computed.
    """
    tell = report or (lambda _message, _share: None)
    files = [name for name in methods if _is_file(name)]
    if registry is None:
        registry = load(files)
    else:
        jobs = 0
    provided_track = _track(registry, track)
    chosen = _chosen(registry, methods, files)
    if params and not chosen:
        raise UsageError("parameters belong to methods; name one with --method")
    if budget < 1 or not seeds or min(seeds) < 0:
        raise UsageError(
            "the budget is at least 1, and seeds are whole numbers from 0 on"
        )
    for provided in chosen:
        complete(provided.item.params, params or {}, owner=provided.item.name)
    settings = complete(
        provided_track.item.options,
        options or {},
        owner=f"track {provided_track.item.name}",
    )
    cache_folder = Path(cache) if cache is not None else models.default_cache()
    folder = Path(results)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; choose another for the results")
    metrics = _metrics(registry, provided_track.item)
    if not dry_run:
        _check_writable(folder)
    found = {
        seed: models.find(cache_folder, provided_track.item, seed, settings)
        for seed in seeds
    }
    if not dry_run:
        for seed in seeds:
            found[seed] = found[seed] or models.make(
                cache_folder, provided_track.item, seed, settings, tell
            )
    ground = planner.Ground(
        track=provided_track,
        metrics=metrics,
        options=settings,
        models={seed: (entry or {}).get("hashes", {}) for seed, entry in found.items()},
        results=folder,
        budget=budget,
    )
    planned = planner.plan(
        registry, ground, chosen=chosen, fixed=params or {}, seeds=seeds
    )
    notes = dict.fromkeys(n for e in found.values() if e for n in e.get("notes", ()))
    result = Bench(plan=planned, metrics=metrics, notes=list(notes))
    if not dry_run and planned.todo:
        from mtk.trial import Setting

        setting = Setting(
            track=provided_track.item,
            options=settings,
            cache=cache_folder,
            results=folder,
            found={seed: entry for seed, entry in found.items() if entry is not None},
        )
        _run(result, registry, setting, jobs, tuple(files), tell)
    _tabulate(result, provided_track.item)
    return result


def _is_file(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _track(registry: Registry, track: str | Track) -> Provided[Track]:
    if isinstance(track, str):
        return track_in(registry, track)
    for provided in registry.tracks:
        if provided.item == track:
            return provided
    here = Plugin(
        distribution="python", version="0", entry_point="", module="", seconds=0.0,
        hooks=(), imported_torch=False,
    )  # fmt: skip
    return Provided(track, here)


def _chosen(
    registry: Registry, methods: Sequence[str], files: Sequence[str]
) -> list[Provided[Method]]:
    chosen = [registry.method(name) for name in methods if name not in files]
    for file in files:
        entry = Path(file).name
        found = [m for m in registry.methods if m.plugin.entry_point == entry]
        if not found:
            broken = [p for p in registry.problems if p.entry_point == entry]
            why = broken[0].cause if broken else "it has no @mtk.hookimpl mtk_methods()"
            raise UsageError(f"{file} offers no method: {why}")
        chosen += found
    return chosen


def _check_writable(folder: Path) -> None:
    """Refuse a folder for results before anything is computed for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{folder} cannot hold results: {error}\nChoose another folder"
        ) from error


def _metrics(registry: Registry, track: Track) -> dict[str, Metric]:
    """The metrics that a track names; the first of each cell must be able to rank."""
    found = {
        name: registry.metric(name).item
        for task in track.tasks
        for name in task.metrics
    }
    for task in track.tasks:
        first = found[task.metrics[0]]
        if first.kind != "item" or not (first.higher_is_better or task.ability):
            raise UsageError(
                f"track {track.name!r}: {first.name!r} cannot rank the cell {task.name!r}\n"
                "The first metric gives one score per item, and higher is better"
            )
    if registry.adapter(track.adapter).item.kind == "lora":
        registry.adapter("full")
    return found


def _run(
    result: Bench,
    registry: Registry,
    setting: Any,
    jobs: int | None,
    files: tuple[str, ...],
    tell: Callable[[str, float | None], None],
) -> None:
    """Measure everything on the list, dearest first; failures are collected."""
    todo = sorted(result.plan.todo, key=_expected_cost, reverse=True)
    workers = min(len(todo), os.cpu_count() or 1 if jobs is None else jobs)
    outcomes = (
        _in_processes(setting, todo, workers, files)
        if workers > 1
        else _in_this_process(registry, setting, todo)
    )
    for count, (item, outcome) in enumerate(outcomes, 1):
        if isinstance(outcome, dict):
            result.records.append(outcome)
        else:
            result.failures.append(Failure(item.qualified, item.seed, outcome))
        tell(f"{item.name} (seed {item.seed})", count / len(todo))


def _expected_cost(item: Item) -> tuple[int, int]:
    """Methods that train are started first, so that no worker waits for them alone."""
    method = item.provided.item if item.provided else None
    trains = method is not None and method.scope == "model"
    return (
        2 if trains else int(bool(method and method.needs.statistics)),
        len(item.trials),
    )


def _in_this_process(
    registry: Registry, setting: Any, todo: Sequence[Item]
) -> Iterator[tuple[Item, Any]]:
    from mtk.trial import measure

    for item in todo:
        try:
            yield item, measure(registry, setting, item)
        except Exception as error:
            yield item, _message(error)


def _in_processes(
    setting: Any, todo: Sequence[Item], workers: int, files: tuple[str, ...]
) -> Iterator[tuple[Item, Any]]:
    from mtk.trial import run_item, start_worker

    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(files,),
    )
    waiting = {pool.submit(run_item, setting, item): item for item in todo}
    workers_now = list((pool._processes or {}).values())  # noqa: SLF001  no public way before 3.14
    try:
        for future in concurrent.futures.as_completed(waiting):
            error = future.exception()
            yield waiting[future], future.result() if error is None else _message(error)
    finally:
        interrupted = not all(future.done() for future in waiting)
        pool.shutdown(wait=False, cancel_futures=True)
        if interrupted:
            for worker in workers_now:
                worker.terminate()


def _message(error: BaseException) -> str:
    if isinstance(error, MtkError):
        return str(error)
    if isinstance(error, concurrent.futures.BrokenExecutor):
        return (
            "its worker process died, perhaps for lack of memory; run again to continue"
        )
    return f"{type(error).__name__}: {error}"


def _tabulate(result: Bench, track: Track) -> None:
    new = [record["key"] for record in result.records]
    for item in result.plan.done:
        record = records.read(item.path)
        if record is not None:
            result.records.append(record)
    for item in (*result.plan.done, *result.plan.todo):
        sheet = records.sheet_of(item.path)
        if sheet.is_file():
            result.sheets[records.key_of(item.identity)] = sheet
    result.rows = scores.rows(result.records, track, new)
    result.facts = scores.facts(result.records, track)
