"""mergekit's nuslerp in terms of our slerp: two weights become one place on the arc."""

from __future__ import annotations

from typing import Any

from mtk.errors import ParameterError
from mtk.recipes import Gradient
from mtk_recipes_mergekit.settings import both

# Sums of the weights that differ by less are the same number.
CLOSE = 1e-9


def nuslerp(params: dict[str, Any], where: str) -> dict[str, Any]:
    """Replace the weights by t, and the two truth values by the scope of the vectors.

    mergekit's ``nuslerp_row_wise`` takes vectors along the first axis: our columns.
    """
    first, second = params.pop("weights")
    flatten, row_wise = params.pop("flatten"), params.pop("row_wise")
    t = both(first, second, lambda a, b: _share(a, b, where))
    scope = both(
        flatten, row_wise, lambda a, b: "tensor" if a else "column" if b else "row"
    )
    return params | {"t": t, "scope": scope}


def _share(first: Any, second: Any, where: str) -> Any:
    """What the second weight is of both."""
    if not isinstance(first, Gradient) and not isinstance(second, Gradient):
        return _ratio(first, second, where)
    count = len((first if isinstance(first, Gradient) else second).points)
    pairs = list(zip(_points(first, count), _points(second, count), strict=False))
    sums = [one + other for one, other in pairs]
    even = len(_points(first, count)) == len(_points(second, count))
    if not even or max(sums) - min(sums) > CLOSE:
        raise ParameterError(
            f"{where}: nuslerp takes weights that change over the layers only if their "
            "sum does not\nWrite them with equally many values, such as [0, 1] and [1, 0]"
        )
    return Gradient(tuple(_ratio(one, other, where) for one, other in pairs))


def _points(value: Any, count: int) -> tuple[float, ...]:
    return value.points if isinstance(value, Gradient) else (value,) * count


def _ratio(first: float, second: float, where: str) -> float:
    total = first + second
    t: float = second / total if total else -1.0
    if not 0 <= t <= 1:
        raise ParameterError(
            f"{where}: the weights {first:g} and {second:g} are no place on the arc "
            "between two models\nGive two weights of one sign"
        )
    return t
