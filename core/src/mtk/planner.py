"""Deciding, from declarations alone, what will run, what will not, and why."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mtk.errors import MtkError, first_line
from mtk.parameters import complete
from mtk.records import PROTOCOL, path_of, read, source_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mtk.declare import Method, Track
    from mtk.loading import Provided, Registry

Kind = Literal["method", "control", "baseline"]
BASELINES = ("pretrained", "experts", "multitask")


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
    return None


def trials_of(method: Method, fixed: Mapping[str, Any], budget: int) -> list[dict[str, Any]]:
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


def plan(
    registry: Registry,
    track: Provided[Track],
    *,
    chosen: Sequence[Provided[Method]],
    fixed: Mapping[str, Any],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    models: Mapping[int, Mapping[str, Any]],
    results: Path,
    budget: int,
) -> Plan:
    """Plan a benchmark. ``chosen`` empty means every installed method.

    ``models`` maps a seed to the hashes of its checkpoints (empty where they are not made
    yet, and then nothing can be done already).
    """
    result = Plan(track=track, seeds=tuple(seeds))
    kind = registry.adapter(track.item.adapter).item.kind
    ambiguous = registry.ambiguous()
    wanted = {provided.qualified for provided in chosen}
    for provided in registry.methods:
        method, name = provided.item, provided.item.name
        selected = not chosen or provided.qualified in wanted
        if selected and not chosen and name in ambiguous:
            others = " and ".join(q for q in ambiguous[name] if q != provided.qualified)
            result.skipped.append(Skipped(provided.qualified, f"the name is also {others}"))
            continue
        reason = refusal(method, track.item, kind)
        values = fixed if provided.qualified in wanted else {}
        if reason is None:
            reason = _unusable(provided, values, len(track.item.held_in))
        if reason is not None:
            if selected:
                result.skipped.append(Skipped(name, reason))
            continue
        variants = [values] if not values else [values, {}]
        for seed in seeds:
            for variant in variants:
                run = (selected and variant is values) or method.reference
                _add(result, _item(provided, seed, variant, track, options, models, results, budget), run)
            if method.reference:
                control = _item(
                    provided, seed, {}, track, options, models, results, 1, kind="control"
                )
                _add(result, control, run=True)
    for seed in seeds:
        for name in BASELINES:
            identity = _identity(track, seed, options, models, kind="baseline", method=name)
            path = path_of(results, identity)
            item = Item(
                name=name, qualified=name, kind="baseline", seed=seed, identity=identity, path=path
            )
            _add(result, item, run=True)
    return result


def _unusable(provided: Provided[Method], fixed: Mapping[str, Any], experts: int) -> str | None:
    """A declared target that cannot be found, or parameters that do not fit."""
    complete(provided.item.params, fixed, owner=provided.item.name, experts=experts)
    from mtk.loading import resolve

    try:
        for target in (provided.item.target, *(scan.target for scan in provided.item.scans)):
            if isinstance(target, str):
                _find_module(target)
            else:
                resolve(target)
    except (MtkError, ImportError, ValueError) as error:
        return f"{provided.plugin.distribution}: {first_line(error)}"
    return None


def _find_module(target: str) -> None:
    import importlib.util

    module = target.partition(":")[0]
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"no module named {module!r}, which its target names")


def _add(result: Plan, item: Item, run: bool) -> None:
    if item.done:
        result.done.append(item)
    elif run:
        result.todo.append(item)


def _item(
    provided: Provided[Method],
    seed: int,
    fixed: Mapping[str, Any],
    track: Provided[Track],
    options: Mapping[str, Any],
    models: Mapping[int, Mapping[str, Any]],
    results: Path,
    budget: int,
    kind: Kind = "method",
) -> Item:
    method = provided.item
    trials = trials_of(method, fixed, budget)
    targets = [method.target, *(scan.target for scan in method.scans), method.decode, method.route]
    identity = _identity(
        track,
        seed,
        options,
        models,
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
        path=path_of(results, identity),
        trials=tuple(trials),
        provided=provided,
    )


def _identity(
    track: Provided[Track],
    seed: int,
    options: Mapping[str, Any],
    models: Mapping[int, Mapping[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "track": track.item.name,
        "track_version": track.item.version,
        "options": dict(options),
        "seed": seed,
        "models": dict(models.get(seed, {})),
        **more,
    }
