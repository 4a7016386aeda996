"""Kinds of files that plugins read: recipes, and descriptions of tracks. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtk._declaring import SLUG, require


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFormat:
    """A kind of file that says what to merge.

    The target is called as ``target(path)`` and returns a :class:`mtk.recipes.Recipe`.
    ``suffixes`` are the ends of the file names it reads.
    """

    name: str
    target: Any
    summary: str
    suffixes: tuple[str, ...]

    def __post_init__(self) -> None:
        owner = f"recipe format {self.name!r}"
        require(bool(SLUG.fullmatch(self.name)), f"{owner}: bad name")
        require(
            bool(self.suffixes) and all(s.startswith(".") for s in self.suffixes),
            f"{owner}: suffixes are ends of file names, such as '.yml'",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackFormat:
    """A kind of file that describes a track.

    The target is called as ``target(path)`` and returns a :class:`Track`.
    """

    name: str
    target: Any
    summary: str
    suffixes: tuple[str, ...]
