"""From a recipe to jobs: which sources, method and parameters give each tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from mtk.errors import ParameterError, UsageError
from mtk.job import Job, takes
from mtk.layers import depths, place, position
from mtk.parameters import complete
from mtk.patterns import check_patterns, fits, prefix
from mtk.recipes import evaluate
from mtk.stacking import stacked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mtk.adapters import Checkpoint
    from mtk.declare import Method, TensorInfo
    from mtk.recipes import Recipe, Rule, Slab, Source

    Find = Callable[[str], Method]

# Weights that are to be normalised, and whose sum is below this, have no mean.
SMALLEST_SUM = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The models of one merge, in the order of the experts."""

    experts: Sequence[Checkpoint]
    base: Checkpoint | None = None

    @property
    def first(self) -> Checkpoint:
        """Gives names, shapes and dtypes."""
        return self.base or self.experts[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tensors of the result that come from one job."""

    job: Job
    names: Sequence[str]


@dataclass(slots=True)
class _Group:
    """Tensors with the same sources and method, before they become a job."""

    models: Opened
    method: Method
    names: list[str] = field(default_factory=list)
    params: dict[str, dict[str, Any]] = field(default_factory=dict)


def parts(
    recipe: Recipe,
    find: Find,
    models: Opened | None,
    slabs: Sequence[tuple[Slab, Opened]] = (),
    **given: Any,
) -> list[Part]:
    """The jobs of a recipe without its stages.

    Args:
        recipe: what to do.
        find: a method's declaration by name.
        models: the opened models, for a recipe without slabs.
        slabs: the slabs of the recipe with their opened models.
        given: further fields of every :class:`mtk.job.Job` (``masks`` ...).
    """
    made, seen, floats, checked = [], dict[str, None](), set[str](), _Checked()
    find = cache(find)
    rules = [(rule, fits(*rule.match)) for rule in recipe.rules]
    others = [r.method for r in recipe.rules] + [s.method for s in recipe.slabs]
    for other in filter(None, others):
        find(other)  # an unknown one is refused, whether or not a later rule wins
    sections = list(stacked(slabs)) if slabs else [(None, models)]
    for slab, section in sections:
        assert section is not None
        groups: dict[str, _Group] = {}
        rest = []
        names = section.first.names()
        where_in = _positions(section.first, slabbed=slab is not None)
        for name in names:
            seen[name] = None
            info = section.first.info(name)
            floats |= {name} if info.role != "buffer" else set()
            if not takes(recipe.only, info):
                rest.append(name)
                continue
            method, params = _chosen(find, recipe, slab, rules, name)
            if method not in groups:
                groups[method] = _Group(section, find(method))
            group = groups[method]
            group.names.append(name)
            values = _evaluated(recipe, params, name, where_in(name))
            try:
                group.params[name] = checked(group, values)
            except ParameterError as error:
                raise (_at(name, error) if rules else error) from None
        if not groups:
            method = (slab.method if slab else None) or recipe.method
            groups[method] = _Group(section, find(method))
        # What is copied is the same whoever does it.
        next(iter(groups.values())).names += rest
        made += [_part(recipe, group, given) for group in groups.values()]
    check_patterns(recipe, seen, floats)
    return made


def _at(name: str, error: ParameterError) -> ParameterError:
    first, *more = str(error).splitlines()
    return ParameterError("\n".join([f"{first} (at {name!r})", *more]))


class _Checked:
    """Complete and checked parameters; equal ones are the same dict."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}

    def __call__(self, group: _Group, values: dict[str, Any]) -> dict[str, Any]:
        count = len(group.models.experts)
        text = f"{group.method.name} {count} {values!r}"
        if text not in self._known:
            self._known[text] = _completed(group.method, values, count)
        return self._known[text]


def _positions(models: Checkpoint, *, slabbed: bool) -> Callable[[str], float]:
    """How deep a tensor lies, from 0 to 1: in its stack of layers, or in its slab."""
    names = models.names()
    deep = depths(names)
    layers = [found.layer for found in map(place, names) if found] if slabbed else []
    low, high = (min(layers), max(layers)) if layers else (0, 0)

    def within(name: str) -> float:
        found = place(name) if slabbed else None
        if found is None:
            return position(name, deep, models.info(name).role)
        return (found.layer - low) / max(high - low, 1)

    return within


def _chosen(
    find: Find,
    recipe: Recipe,
    slab: Slab | None,
    rules: Sequence[tuple[Rule, Callable[[str], Any]]],
    name: str,
) -> tuple[str, Mapping[str, Any]]:
    """Method and parameters of a tensor, before they are evaluated for it."""
    method, params = recipe.method, dict(recipe.params)
    if slab is not None:
        if slab.method and find(slab.method) is not find(method):
            method, params = slab.method, {}
        params |= slab.params
    for rule, fitting in rules:
        if not fitting(name):
            continue
        if rule.method and find(rule.method) is not find(method):
            method, params = rule.method, {}
        params |= rule.params
    return method, params


def _evaluated(
    recipe: Recipe, params: Mapping[str, Any], name: str, where: float
) -> dict[str, Any]:
    values = {}
    for key, value in params.items():
        try:
            values[key] = evaluate(value, name, where)
        except LookupError:
            raise ParameterError(
                f"{prefix(recipe.where)}{key!r} has no value for {name!r}\n"
                "Add a case that fits every tensor, as a last one: '*'"
            ) from None
    return values


def _completed(
    method: Method, values: Mapping[str, Any], experts: int
) -> dict[str, Any]:
    params = complete(method.params, values, owner=method.name, experts=experts)
    weights = params.get("weights")
    if params.get("normalize") is True and weights is not None:
        given = weights if isinstance(weights, list) else [weights] * experts
        total = sum(given) + params.get("base_weight", 0.0)
        if abs(total) < SMALLEST_SUM:
            raise ParameterError(
                f"{method.name}: the weights {given} sum to {total:g}, and cannot be "
                "normalised\nGive normalize=false, or weights with another sum"
            )
    return params


def _part(recipe: Recipe, group: _Group, given: Mapping[str, Any]) -> Part:
    common = _usual(list(group.params.values()))
    if common is None:
        common = _completed(group.method, {}, len(group.models.experts))
    varied = {name: own for name, own in group.params.items() if own is not common}
    job = Job(
        method=group.method,
        experts=group.models.experts,
        base=group.models.base,
        params=common,
        varied=varied,
        dtype=recipe.dtype,
        only=recipe.only,
        chosen=frozenset(group.names),
        **given,
    )
    _check_scans(job)
    return Part(job=job, names=tuple(sorted(group.names)))


def _usual(values: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What most tensors have; of equally many, what comes first."""
    counts = Counter(map(id, values))
    return max(values, key=lambda own: counts[id(own)], default=None)


def _check_scans(job: Job) -> None:
    """What a scan adds up over all tensors must mean the same in each of them.

    Scans of single tensors, and those that run for none, ask for nothing.
    """
    known = {id(own): own for own in (job.params, *job.varied.values())}.values()
    for scan in job.method.scans:
        runs = [all(own[n] in v for n, v in scan.when.items()) for own in known]
        if scan.each or not any(runs):
            continue
        for name in sorted(scan.same if all(runs) else scan.when):
            if any(own[name] != job.params[name] for own in known):
                hint = (
                    "\nGive threshold_scope=tensor, or one value for all tensors"
                    if "threshold_scope" in job.params
                    else ""
                )
                raise ParameterError(
                    f"{job.method.name}: {name!r} differs between tensors, but is used for "
                    f"the model as a whole{hint}"
                )


def layers_of(slabs: Sequence[Slab]) -> int | None:
    """How many layers the result has, where it is stacked."""
    return sum(s.sources[0][2] - s.sources[0][1] for s in slabs) or None


def sources_of(recipe: Recipe) -> list[Source]:
    """All models that a recipe names, without those of its stages."""
    found = [*recipe.experts, *([recipe.base] if recipe.base else [])]
    for slab in recipe.slabs:
        found += [source for source, _, _ in slab.sources]
        found += [slab.base] if slab.base else []
    return found


def result(found: Sequence[Part]) -> dict[str, TensorInfo]:
    """All tensors of the result."""
    infos: dict[str, TensorInfo] = {}
    for part in found:
        for name in part.names:
            if name in infos:
                raise UsageError(f"{name!r} comes from two slabs of the recipe")
            infos[name] = part.job.result(name)
    return infos
