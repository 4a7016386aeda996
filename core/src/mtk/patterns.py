"""Patterns of tensor names in recipes: read once, and refused where they fit nothing."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk.parameters import suggestion
from mtk.recipes import Choice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mtk.recipes import Recipe


def check_patterns(recipe: Recipe, names: Iterable[str], floats: set[str]) -> None:
    """Every pattern, of ``only``, rules and choices, must fit some tensor."""
    known = list(names)
    for pattern in recipe.only:
        if not any(map(fits(pattern), floats)):
            raise CheckpointError(
                f"{prefix(recipe.where)}no floating-point tensor matches {pattern!r}"
                f"{_near(pattern, known)}"
            )
    wanted = [(pattern, rule.where) for rule in recipe.rules for pattern in rule.match]
    given = [(recipe.params, recipe.where)]
    given += [(rule.params, rule.where) for rule in recipe.rules]
    given += [(slab.params, slab.where) for slab in recipe.slabs]
    for params, where in given:
        wanted += [(pattern, where) for pattern in _cases(list(params.values()))]
    for pattern, where in dict.fromkeys(wanted):
        if not any(map(fits(pattern), known)):
            raise UsageError(
                f"{prefix(where)}no tensor fits {pattern!r}{_near(pattern, known)}"
            )


def fits(*patterns: str) -> Callable[[str], Any]:
    """What says whether one of the patterns fits a name. They are read once."""
    return re.compile("|".join(map(translate, patterns))).match


def prefix(where: str) -> str:
    """How a message about a part of a recipe begins."""
    return f"{where}: " if where else ""


def _near(pattern: str, names: Sequence[str]) -> str:
    return (
        f"{suggestion(pattern.strip('*'), names)}\n(mtk inspect MODEL shows the names)"
    )


def _cases(value: Any) -> Iterable[str]:
    if isinstance(value, Choice):
        for pattern, case in value.cases:
            yield pattern
            yield from _cases(case)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _cases(item)
