"""Deciding, from declarations alone, what will run, what will not, and why."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mtk.parameters import complete
from mtk.records import PROTOCOL, key_of, path_of, read, source_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mtk.declare import Method, Metric, Track
    from mtk.loading import Provided, Registry

Kind = Literal["method", "control", "baseline"]
# Baseline -> the checkpoints that decide its scores.
_USES = {"pretrained": ("base",), "experts": ("experts",), "multitask": ("multitask",)}
BASELINES = tuple(_USES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to measure: a method or a baseline, for one seed."""

    name: str
    qualified: str
    kind: Kind
    seed: int
    identity: dict[str, Any] = field(hash=False)
    path: Path
    trials: tuple[dict[str, Any], ...] = field(default=({},), hash=False)
    provided: Provided[Method] | None = None

    @property
    def done(self) -> bool:
        """Whether it has a record that can be read."""
        return read(self.path) is not None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A method that will not run, and the reason."""

    method: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a benchmark will do."""

    track: Provided[Track]
    seeds: tuple[int, ...]
    todo: list[Item] = field(default_factory=list)
    done: list[Item] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def refusal(method: Method, track: Track, adapter_kind: str) -> str | None:
    """Why a method cannot run on a track, from the declarations alone; None if it can."""
    needs, count = method.needs, len(track.held_in)
    low, high = needs.experts
    if count < low:
        return f"takes at least {low} experts, the track has {count}"
    if high is not None and count > high:
        takes = f"exactly {high}" if low == high else f"at most {high}"
        return f"takes {takes} experts, the track has {count}"
    if adapter_kind not in needs.checkpoints:
        return f"merges {' or '.join(needs.checkpoints)} checkpoints, these are {adapter_kind}"
    if needs.split == "test_time":
        return "asks for test inputs, which the protocol gives to no method"
    return _lacking(method, track)


def _lacking(method: Method, track: Track) -> str | None:
    """What the track's outputs cannot give to a method, or None."""
    needs = method.needs
    if needs.outputs and track.output not in needs.outputs:
        wanted = " or ".join(needs.outputs)
        return f"learns from {wanted} outputs, those of the track are {track.output}"
    if track.output == "none" and (needs.statistics or needs.data != "none"):
        what = " and ".join(needs.statistics) or "data to learn from"
        return f"needs {what}, and the track gives no outputs of its models"
    return None


def trials_of(
    method: Method, fixed: Mapping[str, Any], budget: int
) -> list[dict[str, Any]]:
    """Points of the declared grid with the fixed values put in, at most ``budget``.

    The defaults come first and are always tried. A larger grid is sampled, with one seed
    for everybody.
    """
    points: list[dict[str, Any]] = []
    for point in method.grid:
        values = {**point, **fixed}
        if values not in points:
            points.append(values)
    if len(points) > budget:
        points = [points[0], *random.Random(0).sample(points[1:], budget - 1)]
    return points


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all items of one plan stand on.

    ``models`` maps a seed to the hashes of its checkpoints; it is empty where they are
    not made yet, and then nothing can be done already. ``metrics`` are those that the
    track names.
    """

    track: Provided[Track]
    metrics: Mapping[str, Metric]
    options: Mapping[str, Any]
    models: Mapping[int, Mapping[str, Any]]
    results: Path
    budget: int

    def baseline(self, name: str, seed: int) -> Item:
        """The item of a baseline."""
        identity = self._identity(seed, _USES[name], kind="baseline", method=name)
        return Item(
            name=name,
            qualified=name,
            kind="baseline",
            seed=seed,
            identity=identity,
            path=path_of(self.results, identity),
        )

    def method(
        self, provided: Provided[Method], seed: int, fixed: Mapping[str, Any]
    ) -> Item:
        """The item of a method with these fixed values."""
        return self._measured(provided, seed, fixed, kind="method", budget=self.budget)

    def control(self, provided: Provided[Method], seed: int) -> Item:
        """The item of a reference method on random deltas, at its defaults."""
        return self._measured(provided, seed, {}, kind="control", budget=1)

    def _measured(
        self,
        provided: Provided[Method],
        seed: int,
        fixed: Mapping[str, Any],
        *,
        kind: Kind,
        budget: int,
    ) -> Item:
        method = provided.item
        trials = trials_of(method, fixed, budget)
        scans = [
            target
            for scan in method.scans
            for target in (scan.target, scan.finish, scan.needed)
        ]
        targets = [method.target, *scans, method.decode, method.route]
        identity = self._identity(
            seed,
            ("base", "experts"),
            kind=kind,
            method=provided.qualified,
            version=provided.plugin.version,
            source=[source_hash(target) for target in targets if target is not None],
            params=dict(fixed),
            trials=trials,
        )
        return Item(
            name=method.name if kind == "method" else f"random deltas ({method.name})",
            qualified=provided.qualified,
            kind=kind,
            seed=seed,
            identity=identity,
            path=path_of(self.results, identity),
            trials=tuple(trials),
            provided=provided,
        )

    def _cells(self) -> str:
        """Hash of what is measured: the cells, their parts, their metrics' sources."""
        cells = [
            (task.name, task.held_in, task.ability, task.metrics)
            for task in self.track.item.tasks
        ]
        metrics = {
            name: source_hash(metric.target) for name, metric in self.metrics.items()
        }
        return key_of(
            {"cells": cells, "merge": self.track.item.merge, "metrics": metrics}
        )

    def _identity(self, seed: int, uses: Sequence[str], **more: Any) -> dict[str, Any]:
        models = self.models.get(seed, {})
        return {
            "protocol": PROTOCOL,
            "track": self.track.item.name,
            "track_version": self.track.item.version,
            "cells": self._cells(),
            "options": dict(self.options),
            "seed": seed,
            "models": {name: models[name] for name in uses if name in models},
            **more,
        }


def plan(
    registry: Registry,
    ground: Ground,
    *,
    chosen: Sequence[Provided[Method]],
    fixed: Mapping[str, Any],
    seeds: Sequence[int],
) -> Plan:
    """Plan a benchmark. ``chosen`` empty means every installed method.

    Reference methods, their controls and the baselines are always part of it; what others
    have left in the results folder is part of the table.
    """
    result = Plan(track=ground.track, seeds=tuple(seeds))
    kind = registry.adapter(ground.track.item.adapter).item.kind
    wanted = {provided.qualified for provided in chosen}
    for provided in registry.methods:
        values = fixed if provided.qualified in wanted else {}
        reason = _reason(
            registry, provided, ground.track.item, kind, values, bool(chosen)
        )
        selected = not chosen or provided.qualified in wanted
        if reason is not None:
            if selected:
                result.skipped.append(reason)
            continue
        for seed in seeds:
            _add(
                result,
                ground.method(provided, seed, values),
                run=selected or provided.item.reference,
            )
            if values:
                _add(
                    result,
                    ground.method(provided, seed, {}),
                    run=provided.item.reference,
                )
            if provided.item.reference:
                _add(result, ground.control(provided, seed), run=True)
    for seed in seeds:
        made = ground.models.get(seed) or {}
        for name in BASELINES:
            if made and not set(_USES[name]) <= set(made):
                continue  # the track has no multitask model
            _add(result, ground.baseline(name, seed), run=True)
    return result


def _reason(
    registry: Registry,
    provided: Provided[Method],
    track: Track,
    kind: str,
    fixed: Mapping[str, Any],
    named: bool,
) -> Skipped | None:
    """Why a method is left out, or None. A name used twice must be asked for in full."""
    method = provided.item
    others = [
        q for q in registry.ambiguous().get(method.name, []) if q != provided.qualified
    ]
    if others and not named:
        return Skipped(provided.qualified, f"the name is also {' and '.join(others)}")
    complete(method.params, fixed, owner=method.name, experts=len(track.held_in))
    reason = refusal(method, track, kind) or _unusable(provided)
    return None if reason is None else Skipped(method.name, reason)


def _unusable(provided: Provided[Method]) -> str | None:
    """A declared target that cannot be found."""
    for target in (
        provided.item.target,
        *(
            target
            for scan in provided.item.scans
            for target in (scan.target, scan.finish, scan.needed)
        ),
    ):
        if not isinstance(target, str):
            continue
        module = target.partition(":")[0]
        try:
            found = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            return f"{provided.plugin.distribution}: there is no module {module!r}"
    return None


def _add(result: Plan, item: Item, *, run: bool) -> None:
    if item.done:
        result.done.append(item)
    elif run:
        result.todo.append(item)
