"""Entries of TOML recipes: each is checked, or refused with its place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.parameters import suggestion
from mtk.recipes import Choice, Gradient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def check_keys(table: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Refuse a key that is not known here, and name the nearest one."""
    for key in table:
        if key not in keys:
            raise UsageError(
                f"{where}: unknown key {key!r}{suggestion(key, keys)}\n"
                f"Known here: {', '.join(keys)}"
            )


def tables(table: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """The tables of ``[[key]]``; none where there are none."""
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(t, dict) for t in found):
        raise UsageError(f"{where}: write [[{key}]] tables")
    return found


def entries(table: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """A list that must be there, and not be empty."""
    found = table.get(key)
    if not isinstance(found, list) or not found:
        raise UsageError(f"{where}: {key} is a list, and not empty")
    return found


def text(table: Mapping[str, Any], key: str, where: str) -> str:
    """A text that must be there."""
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: give {key} a text")
    return value


def patterns(value: Any, where: str) -> tuple[str, ...]:
    """One pattern of tensor names, or several."""
    found = [value] if isinstance(value, str) else value
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(text, str) for text in found)
    ):
        raise UsageError(f"{where}: write one pattern of tensor names, or a list")
    return tuple(found)


def layer_range(value: Any, where: str) -> tuple[int, int]:
    """``[first, end]``, the end excluded."""
    if (
        not isinstance(value, list)
        or [type(v) for v in value] != [int, int]
        or not 0 <= value[0] < value[1]
    ):
        raise UsageError(f"{where}: layers is [first, end], the end excluded")
    return value[0], value[1]


def params_of(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The parameters of a recipe, a rule or a slab."""
    given = table.get("params", {})
    if not isinstance(given, dict):
        raise UsageError(f"{where}: params is a table")
    return {key: value_of(value, f"{where}: {key}") for key, value in given.items()}


def value_of(value: Any, where: str) -> Any:
    """A plain value, ``{gradient = [...]}``, ``{choice = {...}}`` or a list of them."""
    if isinstance(value, list):
        return [value_of(item, where) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"gradient"}:
        points = value["gradient"]
        if (
            not isinstance(points, list)
            or not points
            or not all(
                isinstance(p, int | float) and not isinstance(p, bool) for p in points
            )
        ):
            raise UsageError(f"{where}: a gradient is a list of numbers")
        return Gradient(tuple(float(point) for point in points))
    if set(value) == {"choice"}:
        return _choice(value["choice"], where)
    raise UsageError(
        f"{where}: write a value, {{gradient = [...]}} or {{choice = [[PATTERN, ...]]}}"
    )


def _choice(value: Any, where: str) -> Choice:
    """A table, or a list of pairs; of these the order is kept by every TOML tool."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if (
        not isinstance(pairs, list)
        or not pairs
        or not all(
            isinstance(pair, list | tuple)
            and len(pair) == len(("pattern", "value"))
            and isinstance(pair[0], str)
            for pair in pairs
        )
    ):
        raise UsageError(f"{where}: a choice is a list of [PATTERN, VALUE]")
    return Choice(tuple((pattern, value_of(case, where)) for pattern, case in pairs))


def size_of(value: Any, where: str) -> int | None:
    """A number of bytes, or a text such as ``5GB``."""
    if value is None or (type(value) is int and value > 0):
        return value
    return parse_size(value, where) if isinstance(value, str) else _no_size(where)


def parse_size(text: str, where: str) -> int:
    """``5GB`` as a number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    return size if size > 0 else _no_size(where)


def _no_size(where: str) -> int:
    raise UsageError(f"{where}: a size is a number of bytes, such as 500MB or 5GB")
