"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk

if TYPE_CHECKING:
    from collections.abc import Iterator


@mtk.hookimpl
def mtk_recipes() -> Iterator[mtk.RecipeFormat]:
    yield mtk.RecipeFormat(
        name="mergekit",
        target="mtk_recipes_mergekit.reading:read",
        summary="mergekit's YAML, with mergekit's rules for every method",
        suffixes=(".yml", ".yaml"),
    )
