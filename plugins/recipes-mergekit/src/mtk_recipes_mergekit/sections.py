"""Models and settings as experts, base and parameters of one of our methods."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import ParameterError, UsageError
from mtk_recipes_mergekit.settings import each, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtk_recipes_mergekit.methods import Knob, Row
    from mtk_recipes_mergekit.references import Reference
    from mtk_recipes_mergekit.schema import Input
    from mtk_recipes_mergekit.settings import Setting

    Levels = Sequence[Mapping[str, Setting]]

SMALLEST_SUM = 1e-8  # a smaller sum of weights cannot be divided by
_COPY: dict[str, Any] = {"weights": [1.0], "normalize": False}
# A whole number between points, which may be that of a layer.
_NUMBER = re.compile(r"(^|\.)\d+(\.|$)")


@dataclass(frozen=True, slots=True)
class Section:
    """Models that are merged by one rule: all of a recipe, or a slice of it."""

    method: str
    params: dict[str, Any]
    experts: tuple[Input, ...]
    base: Input | None


def section(
    row: Row,
    inputs: Sequence[Input],
    base: Reference | None,
    levels: Levels,
    where: str,
    first: int = 0,
) -> Section:
    """What becomes of some models, by a row of the table.

    Args:
        row: the method.
        inputs: all models, the base among them where there is one.
        base: which of them is the base.
        levels: settings that hold for all of them, from the nearest to the farthest.
        where: for messages.
        first: number of their first layer in the result.
    """
    _check_inputs(row, inputs, base, where)
    own = next((entry for entry in inputs if entry.model == base), None)
    others = [entry for entry in inputs if entry is not own]
    experts = list(inputs) if row.base == "model" else others
    if row.base == "start" and own:
        experts, own = [own, *others], None
    if row.base == "model":
        own = None
    _check_count(row, len(experts), where)
    if row.alone and len(experts) == 1:
        return Section("linear", dict(_COPY), tuple(experts), None)
    params = _params(row, experts, levels, where, first)
    if row.base == "origin":
        params["origin"] = "base" if own else "zero"
    return Section(row.ours, params, tuple(experts), own)


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
        what = (
            "the model that the others were fine-tuned from"
            if row.base == "needed"
            else "the one of its two models that t = 0 gives"
        )
        raise UsageError(f"{where}: {row.name} needs base_model: {what}")
    if base and row.base != "model" and all(entry.model != base for entry in inputs):
        raise UsageError(
            f"{where}: the base model {base.text} is not among the sources of this slice\n"
            "Add it to the sources, with its layer_range"
        )


def _check_count(row: Row, count: int, where: str) -> None:
    low, high = row.count
    if count < low or (high is not None and count > high):
        besides = " besides the base" if row.base in {"needed", "origin"} else ""
        need = str(low) if low == high else f"at least {low}"
        raise UsageError(
            f"{where}: {row.name} takes {need} model{'s' * (low > 1)}{besides}, "
            f"not {count}"
        )


def _params(
    row: Row, experts: Sequence[Input], levels: Levels, where: str, first: int
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
            value = [
                _own(knob, entry, (entry.params, *levels), layers, first)
                for entry in experts
            ]
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


def _own(
    knob: Knob, entry: Input, levels: Levels, layers: int | None, first: int
) -> Any:
    if entry.layers and entry.layers[0] != first:
        _check_numbers(knob, levels)
    value = resolve(knob, levels, layers=layers)
    if value is None:
        raise ParameterError(
            f"{entry.model.where}: no {knob.name} for {entry.model.text}\n"
            f"Give it under the model's parameters, or one for all at the end"
        )
    return value


def _check_numbers(knob: Knob, levels: Levels) -> None:
    """Filters of models whose layers get other numbers must not look at numbers.

    mergekit compares them with the names in each model, mtk with those in the result.
    """
    for level in levels:
        for case in level[knob.name].cases if knob.name in level else ():
            if case.text and _NUMBER.search(case.text):
                raise ParameterError(
                    f"{case.where}: the filter {case.text!r} has a layer's number, and "
                    "layers get other numbers here\nUse several slices instead"
                )


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
