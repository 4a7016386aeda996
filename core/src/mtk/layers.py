"""Layers, read off tensor names: ``model.layers.3.mlp.up_proj.weight`` is in layer 3."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LAYER = re.compile(r"^(.*?\.)(\d+)\.(.*)$")


@dataclass(frozen=True, slots=True)
class Place:
    """The stack a tensor belongs to (``model.layers.``), its layer, and its name there."""

    stack: str
    layer: int
    rest: str

    def at(self, layer: int) -> str:
        """The tensor's name in another layer."""
        return f"{self.stack}{layer}.{self.rest}"


def place(name: str) -> Place | None:
    """Where a tensor is; None outside of all layers. The first number counts."""
    match = _LAYER.match(name)
    return Place(match[1], int(match[2]), match[3]) if match else None


def depths(names: Iterable[str]) -> dict[str, int]:
    """Stack -> its number of layers."""
    deepest: dict[str, int] = {}
    for name in names:
        found = place(name)
        if found:
            deepest[found.stack] = max(deepest.get(found.stack, 0), found.layer + 1)
    return deepest


def position(name: str, deep: Mapping[str, int], role: str = "") -> float:
    """How deep a tensor lies in its stack, from 0 to 1.

    Outside of all layers, embeddings (by ``role`` or name) count as the beginning, all
    others as the end.
    """
    found = place(name)
    if found is None:
        return 0.0 if role == "embedding" or "embed" in name else 1.0
    return found.layer / max(deep[found.stack] - 1, 1)


def only_stack(names: Iterable[str], label: str) -> str:
    """The one stack of layers of a model that can be cut into slabs."""
    counts = Counter(found.stack for found in map(place, names) if found)
    if len(counts) != 1:
        what = " and ".join(sorted(counts)[:3]) or "none"
        raise UsageError(
            f"{label}: stacking layers needs a model with one stack of layers; it has {what}"
        )
    return next(iter(counts))
