"""Parameters given by a user: parsing, checking, completing."""

from __future__ import annotations

import json
import math
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mtk.errors import MtkError, ParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mtk.declare import Param

_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a word",
    "floats": "a list of numbers",
    "strings": "a list of words",
    "float_or_floats": "a number or a list of numbers",
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_type(kind: str, value: object) -> bool:
    sequence = isinstance(value, list | tuple)
    match kind:
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return _is_number(value)
        case "str":
            return isinstance(value, str)
        case "floats":
            return sequence and all(map(_is_number, value))  # type: ignore[call-overload]
        case "strings":
            return sequence and all(isinstance(item, str) for item in value)  # type: ignore[attr-defined]
        case "float_or_floats":
            return _is_number(value) or _has_type("floats", value)
    return False


def _range_text(param: Param) -> str:
    if param.choices:
        return "one of " + ", ".join(param.choices)
    low = (
        "" if param.low is None else f"{'>' if param.open_low else '>='} {param.low:g}"
    )
    high = "" if param.high is None else f"<= {param.high:g}"
    return " and ".join(filter(None, (low, high)))


def _in_range(param: Param, value: Any) -> bool:
    if param.choices:
        return value in param.choices
    numbers = value if isinstance(value, list | tuple) else [value]
    for number in filter(_is_number, numbers):
        if not math.isfinite(number):
            return False
        if param.low is not None and (
            number < param.low or (param.open_low and number == param.low)
        ):
            return False
        if param.high is not None and number > param.high:
            return False
    return True


def check_value(
    param: Param, value: Any, *, owner: str, error: type[MtkError] = ParameterError
) -> Any:
    """Return ``value`` in the parameter's type, or raise ``error``."""
    if not _has_type(param.type, value):
        raise error(
            f"{owner}: parameter {param.name!r} takes {_WORDS.get(param.type, param.type)},"
            f" not {value!r}"
        )
    if not _in_range(param, value):
        need = _range_text(param) or "a finite number"
        raise error(f"{owner}: parameter {param.name!r} must be {need}, not {value!r}")
    if param.type == "float":
        return float(value)
    if isinstance(value, tuple):
        return list(value)
    return value


def complete(
    params: Sequence[Param],
    given: Mapping[str, Any],
    *,
    owner: str,
    experts: int | None = None,
) -> dict[str, Any]:
    """Check ``given`` against the declarations and fill in the defaults.

    ``null`` (None) asks for the default. Lists of one number per expert are checked
    against ``experts`` where it is known.
    """
    known = {param.name: param for param in params}
    for name in given:
        if name not in known:
            raise ParameterError(
                f"{owner} has no parameter {name!r}{suggestion(name, known)}\n"
                f"Its parameters: {', '.join(known) or 'none'}"
            )
    values = {}
    for name, param in known.items():
        value = given.get(name)
        if value is None:
            default = param.default
            values[name] = list(default) if isinstance(default, tuple) else default
            continue
        values[name] = check_value(param, value, owner=owner)
        is_list = param.type in ("floats", "float_or_floats") and isinstance(
            value, list | tuple
        )
        if is_list and experts is not None and len(value) != experts:
            raise ParameterError(
                f"{owner}: {name!r} has {len(value)} numbers for {experts} experts"
            )
    return values


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """Read ``KEY=JSON`` pairs; a value that is not JSON is taken as a word."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise ParameterError(
                f"--param {pair!r}: write KEY=VALUE, for example density=0.1"
            )
        if key in values:
            raise ParameterError(f"--param {key!r} is given twice")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the nearest known name, or nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
