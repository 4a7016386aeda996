"""The grid of the DomainNet tracks: names and numbers only, cheap to import."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SPLITS = ("train", "validation", "test")
# What a head tells apart: all classes of the grid, or those of the cell's group.
HEAD_SCOPES = ("joint", "group")
# How prompts write a class: as its key, or with spaces for underscores.
NAMES = ("raw", "spaces")
MULTITASK = "multitask"
# Raise them when data or recipes change: old records then do not count.
CLIP_VERSION = "1"
SD21_VERSION = "1"
# The classes of all groups; docs/explanation/domainnet-clip.md says whose work they are.
_GROUPS = Path(__file__).with_name("assets") / "groups.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Domains x groups of classes.

    Args:
        domains: in alphabetical order.
        groups: name -> classes, in order, spelt like the folders of images. Equally many
            consecutive groups are held in with each domain. The joint head has the
            classes of all groups as its rows, end to end.
        lists: domain -> lines of its official train and test list; empty to accept any.
        ability: classes of base ability that must have images; None to accept any two.
    """

    domains: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    lists: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    ability: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """All cells, domain by domain."""
        return tuple(f"{d}-{g}" for d in self.domains for g in self.groups)

    @property
    def held_in(self) -> tuple[str, ...]:
        """One cell per group, in the order of the groups."""
        run = len(self.groups) // len(self.domains)
        return tuple(f"{self.domains[i // run]}-{g}" for i, g in enumerate(self.groups))

    @property
    def rows(self) -> tuple[str, ...]:
        """The class of every row of the joint head; a class of two groups has two."""
        return tuple(name for classes in self.groups.values() for name in classes)

    @property
    def canonical(self) -> tuple[int, ...]:
        """For every row, the first row of the same class: either one is right."""
        rows = self.rows
        return tuple(rows.index(name) for name in rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class once."""
        return tuple(dict.fromkeys(self.rows))

    def head(self, group: str, scope: str) -> tuple[str, ...]:
        """The classes that the head of a group tells apart."""
        return self.groups[group] if scope == "group" else self.rows

    def parse(self, cell: str) -> tuple[str, str]:
        """Split a cell's name into its domain and its group.

        >>> DOMAINNET.parse("real-shape")
        ('real', 'shape')
        """
        domain, _, group = cell.partition("-")
        if domain not in self.domains or group not in self.groups:
            raise ValueError(f"no cell named {cell!r}; cells are DOMAIN-GROUP")
        return domain, group


def _shipped() -> dict[str, tuple[str, ...]]:
    groups = json.loads(_GROUPS.read_text(encoding="utf-8"))
    return {name: tuple(classes) for name, classes in groups.items()}


DOMAINNET = Grid(
    domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    groups=_shipped(),
    lists={
        "clipart": (33_525, 14_604),
        "infograph": (36_023, 15_582),
        "painting": (50_416, 21_850),
        "quickdraw": (120_750, 51_750),
        "real": (120_906, 52_041),
        "sketch": (48_212, 20_916),
    },
    ability=100,
)
# Cells of base ability, which no expert touches.
CIFAR = "cifar100"
NEUTRAL = "neutral"
