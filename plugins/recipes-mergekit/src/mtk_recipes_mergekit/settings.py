"""Values of parameters as mergekit writes and looks them up.

A setting is a number, truth value or word; a list of these, which is a gradient over the
layers; or a list of cases, each a value with a ``filter``: text that a tensor's name
must contain. The first case that fits counts. Where none fits, the next level is asked:
source, slice, module, whole recipe, and last the method's default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import ParameterError, UsageError
from mtk.recipes import Choice, Gradient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mtk_recipes_mergekit.document import Item
    from mtk_recipes_mergekit.methods import Knob

    Settings = Mapping[str, "Setting"]

# Names with a layer's number. Everything else counts as layer 0 of a gradient, what is
# behind the layers as well.
LAYERED = "*.[0-9]*.*"
_YES, _NO = {"true", "yes", "on", "y", "t", "1"}, {"false", "no", "off", "n", "f", "0"}


@dataclass(frozen=True, slots=True)
class Case:
    """A value for the tensors whose name contains ``text``; for all where it is None."""

    text: str | None
    value: Any
    where: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What one level of a recipe says about one parameter."""

    cases: tuple[Case, ...]
    where: str


def parse_settings(item: Item | None) -> dict[str, Setting]:
    """The entries of one ``parameters:``."""
    if item is None or item.value is None:
        return {}
    if not item.is_mapping:
        raise UsageError(f"{item.where}: parameters is a mapping from names to values")
    return {name: _setting(name, value) for name, value in item.value.items()}


def _setting(name: str, item: Item) -> Setting:
    if item.is_mapping:
        cases = [_case(name, item)]
    elif item.is_list and any(entry.is_mapping for entry in item.value):
        cases = [_case(name, entry) for entry in item.value]
    else:
        cases = [Case(None, _plain(name, item), item.where)]
    return Setting(tuple(cases), item.where)


def _case(name: str, item: Item) -> Case:
    if not item.is_mapping:
        raise UsageError(
            f"{item.where}: {name!r} mixes plain values and values with a filter\n"
            "Write '- value: ...' for the case without a filter"
        )
    odd = sorted(set(item.value) - {"filter", "value"})
    if odd or "value" not in item.value:
        what = f"has the key {odd[0]!r}" if odd else "has no 'value'"
        raise UsageError(
            f"{item.where}: a case of {name!r} {what}; it takes filter, value"
        )
    text = item.value["filter"].value if "filter" in item.value else None
    if text is not None and not isinstance(text, str):
        raise UsageError(
            f"{item.where}: the filter {text!r} is no text; write it in quotes"
        )
    value = _plain(name, item.value["value"])
    return Case(None if text in {None, "*", ""} else text, value, item.where)


def _plain(name: str, item: Item) -> Any:
    values = item.value if item.is_list else [item]
    for entry in values:
        if entry.is_list or entry.is_mapping or entry.value is None:
            raise UsageError(
                f"{entry.where}: a value of {name!r} is a number, true, false or a word"
            )
    if not values:
        raise UsageError(f"{item.where}: the list of {name!r} is empty")
    return [entry.value for entry in values] if item.is_list else item.value


def resolve(knob: Knob, levels: Iterable[Settings], *, layers: int | None) -> Any:
    """A parameter's value for :class:`mtk.recipes.Recipe`.

    Args:
        knob: what mergekit knows about the parameter.
        levels: settings from the nearest level to the farthest.
        layers: number of layers of a slab; None where it is that of the models.

    Returns:
        A plain value, a choice by name, or None where no level says anything and there
        is no default.
    """
    cases: list[tuple[str, Any]] = []
    for level in levels:
        setting = level.get(knob.name)
        for case in setting.cases if setting else ():
            value = _value(knob, case, layers)
            cases.append(
                ("*" if case.text is None else f"*{_literal(case.text)}*", value)
            )
            if case.text is None:
                return _choice(cases)
    if knob.default is not None:
        cases.append(("*", knob.default))
    return _choice(cases) if cases else None


def _choice(cases: list[tuple[str, Any]]) -> Any:
    first, value = cases[0]
    return value if first == "*" else Choice(tuple(cases))


def _literal(text: str) -> str:
    """Text as a pattern that fits nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _value(knob: Knob, case: Case, layers: int | None) -> Any:
    if not isinstance(case.value, list):
        return _converted(knob, case.value, case.where)
    points = [_converted(knob, value, case.where) for value in case.value]
    if all(point == points[0] for point in points):
        return points[0]
    if knob.kind != "number":
        raise ParameterError(
            f"{case.where}: {knob.name!r} cannot change over the layers; give one value"
        )
    inside = points[-1] if layers == 1 else Gradient(tuple(points))
    return Choice(((LAYERED, inside), ("*", points[0])))


def _converted(knob: Knob, value: Any, where: str) -> Any:
    """A scalar in the type of its parameter, and in range."""
    if knob.kind == "switch":
        word = str(value).lower()
        if word in _YES | _NO:
            return word in _YES
        raise ParameterError(
            f"{where}: {knob.name!r} takes true or false, not {value!r}"
        )
    try:
        number = float("" if isinstance(value, bool) else value)
    except ValueError:
        raise ParameterError(
            f"{where}: {knob.name!r} takes a number, not {value!r}"
        ) from None
    if knob.kind == "whole" and not number.is_integer():
        raise ParameterError(
            f"{where}: {knob.name!r} takes a whole number, not {value!r}"
        )
    if not _in_range(knob, number):
        raise ParameterError(
            f"{where}: {knob.name!r} must be {knob.range}, not {value!r}"
        )
    return int(number) if knob.kind == "whole" else number


def _in_range(knob: Knob, number: float) -> bool:
    if not math.isfinite(number):
        return False
    if knob.low is not None and (
        number < knob.low or (knob.above and number == knob.low)
    ):
        return False
    return knob.high is None or number <= knob.high


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a function to every plain value of a choice."""
    if isinstance(value, Choice):
        return Choice(tuple((text, each(case, change)) for text, case in value.cases))
    return change(value)


def both(one: Any, other: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Apply a function to the plain values or gradients that two settings have together."""
    if isinstance(one, Choice) and isinstance(other, Choice):
        texts = [text for text, _ in one.cases]
        if texts == [text for text, _ in other.cases]:
            pairs = zip(one.cases, other.cases, strict=True)
            return Choice(tuple((t, both(a, b, change)) for (t, a), (_, b) in pairs))
    if isinstance(one, Choice):
        return Choice(
            tuple((text, both(case, other, change)) for text, case in one.cases)
        )
    if isinstance(other, Choice):
        return Choice(
            tuple((text, both(one, case, change)) for text, case in other.cases)
        )
    return change(one, other)
