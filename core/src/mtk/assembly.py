"""From a recipe to jobs: which sources, method and parameters give each tensor."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from mtk.errors import ParameterError, UsageError
from mtk.job import Job, takes
from mtk.layers import depths, only_stack, place, position
from mtk.parameters import complete, suggestion
from mtk.recipes import Choice, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mtk.adapters import Checkpoint
    from mtk.declare import Method, TensorInfo
    from mtk.recipes import Recipe, Slab, Source

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
    groups: dict[tuple[int, str], _Group] = {}
    checked: dict[str, dict[str, Any]] = {}
    sections = list(_stacked(slabs)) if slabs else [(None, models)]
    seen: set[str] = set()
    for number, (slab, section) in enumerate(sections):
        assert section is not None
        names = section.first.names()
        where_in = _positions(names, slabbed=slab is not None)
        for name in names:
            info = section.first.info(name)
            seen.add(name)
            method, params = _chosen(recipe, slab, name)
            declared = find(method)
            key = number, method
            group = groups.setdefault(key, _Group(section, declared))
            group.names.append(name)
            if not takes(recipe.only, info):
                continue
            values = _evaluated(recipe, params, name, where_in(name))
            text = f"{method} {len(section.experts)} {values!r}"
            if text not in checked:
                checked[text] = _completed(declared, values, len(section.experts))
            group.params[name] = checked[text]
    _check_patterns(recipe, seen)
    return [_part(recipe, group, given) for group in groups.values()]


def _positions(names: Sequence[str], *, slabbed: bool) -> Callable[[str], float]:
    """How deep a tensor lies, from 0 to 1: in its stack of layers, or in its slab."""
    deep = depths(names)
    if not slabbed:
        return lambda name: position(name, deep)
    layers = [found.layer for found in map(place, names) if found]
    low, high = min(layers), max(layers)

    def within(name: str) -> float:
        found = place(name)
        if found is None:
            return position(name, {})
        return (found.layer - low) / max(high - low, 1)

    return within


def _chosen(
    recipe: Recipe, slab: Slab | None, name: str
) -> tuple[str, Mapping[str, Any]]:
    """Method and parameters of a tensor, before they are evaluated for it."""
    method, params = recipe.method, dict(recipe.params)
    if slab is not None:
        if slab.method and slab.method != method:
            method, params = slab.method, {}
        params |= slab.params
    for rule in recipe.rules:
        if not any(fnmatchcase(name, pattern) for pattern in rule.match):
            continue
        if rule.method and rule.method != method:
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
                f"{recipe.where or 'recipe'}: {key!r} has no value for {name!r}\n"
                "Add a case that fits every tensor, as a last one without a filter"
            ) from None
    return values


def _completed(
    method: Method, values: Mapping[str, Any], experts: int
) -> dict[str, Any]:
    params = complete(method.params, values, owner=method.name, experts=experts)
    weights = params.get("weights")
    if params.get("normalize") is True and isinstance(weights, list):
        total = sum(weights) + params.get("base_weight", 0.0)
        if abs(total) < SMALLEST_SUM:
            raise ParameterError(
                f"{method.name}: the weights {weights} sum to {total:g}, and cannot be "
                "normalised\nGive normalize=false, or weights with another sum"
            )
    return params


def _check_patterns(recipe: Recipe, names: Iterable[str]) -> None:
    """Every pattern of rules and choices must fit some tensor."""
    known = list(names)
    wanted = [(pattern, rule.where) for rule in recipe.rules for pattern in rule.match]
    for params in (recipe.params, *(rule.params for rule in recipe.rules)):
        wanted += [(pattern, recipe.where) for pattern in _cases(list(params.values()))]
    for pattern, where in wanted:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = suggestion(pattern.strip("*"), known)
            raise UsageError(
                f"{where or 'recipe'}: no tensor fits {pattern!r}{near}\n"
                "(mtk inspect MODEL shows the names)"
            )


def _cases(value: Any) -> Iterable[str]:
    if isinstance(value, Choice):
        for pattern, case in value.cases:
            yield pattern
            yield from _cases(case)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _cases(item)


def _part(recipe: Recipe, group: _Group, given: Mapping[str, Any]) -> Part:
    values = list(group.params.values())
    common = (
        values[0] if values else _completed(group.method, {}, len(group.models.experts))
    )
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
    return Part(job=job, names=tuple(group.names))


def _check_scans(job: Job) -> None:
    """What a scan adds up over all tensors must mean the same in each of them."""
    for scan in job.method.scans:
        fixed = {*scan.when, *getattr(scan, "same", ())}
        if any(job.params[name] not in values for name, values in scan.when.items()):
            fixed = set(scan.when)
        for name in sorted(fixed):
            if any(own[name] != job.params[name] for own in job.varied.values()):
                hint = (
                    "\nGive threshold_scope=tensor, or one value for all tensors"
                    if "threshold_scope" in job.params
                    else ""
                )
                raise ParameterError(
                    f"{job.method.name}: {name!r} differs between tensors, but is used for "
                    f"the model as a whole{hint}"
                )


def _stacked(slabs: Sequence[tuple[Slab, Opened]]) -> Iterable[tuple[Slab, Opened]]:
    """Each slab's models, under the names that its layers have in the result."""
    start = 0
    for number, (slab, models) in enumerate(slabs):
        ends = number == 0, number == len(slabs) - 1
        depth = {end - begin for _, begin, end in slab.sources}
        if len(depth) != 1 or min(depth) < 1:
            raise UsageError(f"{slab.where}: all sources of a slab need as many layers")
        ranges = [begin for _, begin, _ in slab.sources]
        count = depth.pop()
        experts = [
            _cut(model, begin, count, start, ends, slab.where)
            for model, begin in zip(models.experts, ranges, strict=True)
        ]
        base = models.base
        if base is not None:
            begin, end = slab.base_range or slab.sources[0][1:]
            if end - begin != count:
                raise UsageError(f"{slab.where}: the base needs {count} layers as well")
            base = _cut(base, begin, count, start, ends, slab.where)
        yield slab, Opened(experts=experts, base=base)
        start += count


def _cut(
    model: Checkpoint,
    begin: int,
    count: int,
    start: int,
    ends: tuple[bool, bool],
    where: str,
) -> Checkpoint:
    """``count`` layers from ``begin`` on, called ``start`` and so on; ends of the model.

    The first slab brings the embeddings, the last one everything else outside layers.
    """
    names = list(model.names())
    stack = only_stack(names, model.label)
    depth = depths(names)[stack]
    if begin + count > depth:
        raise UsageError(
            f"{where}: {model.label} has layers 0 to {depth - 1}; {begin} to "
            f"{begin + count - 1} are asked for"
        )
    mapping: dict[str, str] = {}
    for name in names:
        found = place(name)
        if found is None:
            early = model.info(name).role == "embedding"
            if ends[0] if early else ends[1]:
                mapping[name] = name
        elif begin <= found.layer < begin + count:
            mapping[found.at(found.layer - begin + start)] = name
    from mtk.views import Renamed

    cut: Checkpoint = Renamed(model, mapping)
    return cut


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
    clash: dict[str, int] = defaultdict(int)
    for part in found:
        for name in part.names:
            infos[name] = part.job.result(name)
            clash[name] += 1
    twice = [name for name, count in clash.items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]!r} comes from two slabs of the recipe")
    return infos
