"""From a configuration to a :class:`mtk.recipes.Recipe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import ParameterError, UsageError
from mtk.parameters import suggestion
from mtk.recipes import Recipe, Slab, Source
from mtk_recipes_mergekit.methods import BY_NAME, KNOWN
from mtk_recipes_mergekit.references import reference
from mtk_recipes_mergekit.remarks import Remarks
from mtk_recipes_mergekit.schema import Input
from mtk_recipes_mergekit.settings import each, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtk_recipes_mergekit.document import Item
    from mtk_recipes_mergekit.methods import Knob, Row
    from mtk_recipes_mergekit.references import Reference
    from mtk_recipes_mergekit.schema import Config
    from mtk_recipes_mergekit.settings import Setting

    Levels = Sequence[Mapping[str, Setting]]

VERSION = "0.1.5"  # of mergekit, whose behaviour all of this follows
SMALLEST_SUM = 1e-8  # a smaller sum of weights cannot be divided by
_COPY: dict[str, Any] = {"weights": [1.0], "normalize": False}


@dataclass(frozen=True, slots=True)
class _Section:
    """Models that are merged by one rule: all of a recipe, or a slice of it."""

    method: str
    params: dict[str, Any]
    experts: tuple[Input, ...]
    base: Input | None


def translate(config: Config, file: str) -> Recipe:
    """The recipe that does what mergekit does with a configuration."""
    row = _row(config.method)
    remarks = Remarks(row, config)
    shared: dict[str, Any] = {
        "method": row.ours,
        "name": config.name,
        "dtype": config.out_dtype or config.dtype,
        "donor": _donor(config).path,
        "where": file,
        **_tokenizer(config),
    }
    if config.slices:
        slabs = tuple(
            _slab(config, row, number) for number in range(len(config.slices))
        )
        return Recipe(slabs=slabs, notes=remarks.collected(), **shared)
    inputs = list(config.inputs)
    if config.base and all(entry.model != config.base for entry in inputs):
        inputs.append(Input(model=config.base, params={}))
    section = _section(
        row, inputs, config.base, (config.module_params, config.params), config.where
    )
    return Recipe(
        **shared | {"method": section.method},
        experts=tuple(_source(entry.model) for entry in section.experts),
        base=_source(section.base.model) if section.base else None,
        params=section.params,
        notes=remarks.collected(),
    )


def _row(method: Item) -> Row:
    name = method.value
    if name in BY_NAME:
        return BY_NAME[name]
    if name not in KNOWN:
        raise UsageError(
            f"{method.where}: mergekit has no merge_method {name!r}"
            f"{suggestion(name, KNOWN)}\nRead here: {', '.join(BY_NAME)}"
        )
    from mtk.loading import load

    if any(provided.item.name == name for provided in load().methods):
        raise UsageError(
            f"{method.where}: mtk has a method {name}, but does not read its parameters "
            f"from mergekit's recipes\nRun it with: mtk merge --method {name}"
        )
    raise UsageError(
        f"{method.where}: mtk has no method {name} yet\nRead here: {', '.join(BY_NAME)}"
    )


def _slab(config: Config, row: Row, number: int) -> Slab:
    part = config.slices[number]
    base = part.base or config.base
    levels = (part.params, config.module_params, config.params)
    section = _section(row, part.inputs, base, levels, part.where)
    base_range = section.base.layers if section.base else None
    return Slab(
        sources=tuple(
            (_source(entry.model), *(entry.layers or (0, 0)))
            for entry in section.experts
        ),
        params=section.params,
        method=None if section.method == row.ours else section.method,
        base=_source(section.base.model) if section.base else None,
        base_range=base_range,
        where=part.where,
    )


def _section(
    row: Row,
    inputs: Sequence[Input],
    base: Reference | None,
    levels: Levels,
    where: str,
) -> _Section:
    _check_inputs(row, inputs, base, where)
    own = next((entry for entry in inputs if entry.model == base), None)
    others = [entry for entry in inputs if entry is not own]
    experts = list(inputs) if row.base == "model" else others
    if row.base == "start" and own:
        experts, own = [own, *others], None
    if row.base == "model":
        own = None
    low, high = row.count
    if len(experts) < low or (high is not None and len(experts) > high):
        besides = " besides the base" if row.base in {"needed", "origin"} else ""
        need = str(low) if low == high else f"at least {low}"
        plural = "s" * (low > 1)
        raise UsageError(
            f"{where}: {row.name} takes {need} model{plural}{besides}, "
            f"not {len(experts)}"
        )
    if row.alone and len(experts) == 1:
        return _Section("linear", dict(_COPY), tuple(experts), None)
    params = _params(row, experts, levels, where)
    if row.base == "origin":
        params["origin"] = "base" if own else "zero"
    return _Section(row.ours, params, tuple(experts), own)


def _check_inputs(
    row: Row, inputs: Sequence[Input], base: Reference | None, where: str
) -> None:
    for number, entry in enumerate(inputs):
        if any(entry.model == other.model for other in inputs[:number]):
            raise UsageError(
                f"{entry.model.where}: {entry.model.text} is merged with itself; name "
                "each model once, with the sum of its weights"
            )
    if base is None and row.base in {"needed", "start"}:
        raise UsageError(
            f"{where}: {row.name} needs base_model\nName the model that the others were "
            "fine-tuned from"
            if row.base == "needed"
            else f"{where}: {row.name} needs base_model: the one of its two models at t = 0"
        )
    if base and row.base != "model" and all(entry.model != base for entry in inputs):
        raise UsageError(
            f"{where}: the base model {base.text} is not among the sources of this slice\n"
            "Add it to the sources, with its layer_range"
        )


def _params(
    row: Row, experts: Sequence[Input], levels: Levels, where: str
) -> dict[str, Any]:
    found: dict[str, Any] = dict(row.fixed)
    layers = None
    if experts[0].layers:
        layers = experts[0].layers[1] - experts[0].layers[0]
    values: dict[str, Any] = {}
    for knob in row.knobs:
        if knob.of == "all":
            value = _shared(knob, levels, layers, where)
        else:
            value = [_own(knob, entry, levels, layers) for entry in experts]
        values[knob.name] = value
        if knob.ours:
            found[knob.ours] = _ours(knob, value)
    _check_sum(row, values, where)
    return row.finish(found, where) if row.finish else found


def _shared(knob: Knob, levels: Levels, layers: int | None, where: str) -> Any:
    value = resolve(knob, levels, layers=layers)
    if value is None:
        raise ParameterError(
            f"{where}: the parameter {knob.name!r} is missing, and has no default"
        )
    if knob.only is not None and value != knob.only:
        place = next(level[knob.name].where for level in levels if knob.name in level)
        raise ParameterError(
            f"{place}: {knob.name!r} other than {str(knob.only).lower()} is not supported"
        )
    return value


def _own(knob: Knob, entry: Input, levels: Levels, layers: int | None) -> Any:
    value = resolve(knob, (entry.params, *levels), layers=layers)
    if value is None:
        raise ParameterError(
            f"{entry.model.where}: no {knob.name} for {entry.model.text}\n"
            f"Give it under the model's parameters, or one for all at the end"
        )
    return value


def _ours(knob: Knob, value: Any) -> Any:
    if knob.words:
        yes, no = knob.words
        return each(value, lambda switch: yes if switch else no)
    if isinstance(value, list) and knob.ours != "weights":
        return value[0] if all(item == value[0] for item in value) else value
    return value


def _check_sum(row: Row, values: Mapping[str, Any], where: str) -> None:
    """A mean needs weights with a sum, as far as they are the same for all tensors."""
    weights = values.get("weight")
    mean = bool(row.means) and values.get(row.means, True) is True
    if not mean or not all(isinstance(weight, float) for weight in weights or ()):
        return
    if abs(sum(weights or (1,))) < SMALLEST_SUM:
        text = ", ".join(f"{weight:g}" for weight in weights or ())
        option = f"\nGive {row.means}: false, or other weights" * (
            row.means != "always"
        )
        raise ParameterError(
            f"{where}: the weights {text} add up to zero, and cannot be normalised{option}"
        )


def _source(model: Reference) -> Source:
    return Source(path=model.path, adapter=model.lora, where=model.where)


def _donor(config: Config) -> Reference:
    """The model whose config is taken: mergekit's base, or the first that is named."""
    if config.base:
        return config.base
    inputs = config.inputs or config.slices[0].inputs
    return inputs[0].model


def _tokenizer(config: Config) -> dict[str, str]:
    item = config.tokenizer
    if item is None:
        return {}
    if item.value == "union":
        return {"tokenizer": "union", "vocabulary": "union"}
    if item.value == "base":
        if config.base is None:
            raise UsageError(f"{item.where}: the tokenizer 'base' needs base_model")
        return {"tokenizer": "base", "vocabulary": "base"}
    model = reference(item)
    if model.lora:
        raise UsageError(
            f"{item.where}: name the folder of a tokenizer, or union, or base"
        )
    return {"tokenizer": model.path}
