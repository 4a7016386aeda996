"""Looking into items: known keys only, of the right kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.parameters import suggestion
from mtk_recipes_mergekit.methods import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtk_recipes_mergekit.document import Item


def known(item: Item, what: str, allowed: tuple[str, ...]) -> Mapping[str, Item]:
    """The entries of a mapping without unknown keys."""
    if not item.is_mapping:
        raise UsageError(f"{item.where}: {what} is a mapping with {', '.join(allowed)}")
    for key, value in item.value.items():
        if key in allowed:
            continue
        if "parameters" in allowed and key in PARAMETERS:
            hint = f"\n{key!r} belongs one level lower, under 'parameters:'"
        else:
            hint = f"{suggestion(key, allowed)}\nKnown here: {', '.join(allowed)}"
        raise UsageError(f"{value.where}: {what} has no key {key!r}{hint}")
    found: Mapping[str, Item] = item.value
    return found


def given(keys: Mapping[str, Item], name: str) -> Item | None:
    """An item that is there and says something."""
    item = keys.get(name)
    empty = item is None or item.value is None or item.value in ([], {}, "")
    return None if empty else item


def entries(item: Item | None) -> list[Any]:
    """The items of a list; none where there is no list."""
    if item is None:
        return []
    if not item.is_list:
        raise UsageError(f"{item.where}: a list is needed here")
    return list(item.value)


def text(item: Item | None) -> str | None:
    """A word, where one is given."""
    return None if item is None or item.value is None else word(item)


def word(item: Item) -> str:
    """Text, and nothing else."""
    if not isinstance(item.value, str):
        raise UsageError(f"{item.where}: text is needed here; write it in quotes")
    return item.value
