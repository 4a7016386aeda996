"""The grid of the DomainNet tracks: names and numbers only, cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SPLITS = ("train", "validation", "test")
# What a head tells apart: all classes of the grid, or those of the cell's group.
HEAD_SCOPES = ("joint", "group")
# How prompts write a class: as its key, or with spaces for underscores.
NAMES = ("raw", "spaces")
MULTITASK = "multitask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Domains x groups of classes.

    Args:
        domains: in alphabetical order.
        groups: name -> number of classes, in order. Equally many consecutive groups are
            held in with each domain.
        lists: domain -> lines of its official train and test list; empty to accept any.
    """

    domains: tuple[str, ...]
    groups: Mapping[str, int]
    lists: Mapping[str, tuple[int, int]] = field(default_factory=dict)

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
    def rows(self) -> int:
        """Rows of the joint head: a class of two groups has two."""
        return sum(self.groups.values())

    def parse(self, cell: str) -> tuple[str, str]:
        """Split a cell's name into its domain and its group.

        >>> DOMAINNET.parse("real-shape")
        ('real', 'shape')
        """
        domain, _, group = cell.partition("-")
        if domain not in self.domains or group not in self.groups:
            raise ValueError(f"no cell named {cell!r}; cells are DOMAIN-GROUP")
        return domain, group


DOMAINNET = Grid(
    domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    groups={
        "furniture": 35,
        "mammal": 25,
        "tool": 28,
        "cloth": 23,
        "electricity": 25,
        "building": 21,
        "office": 21,
        "human_body": 20,
        "road_transportation": 15,
        "food": 14,
        "nature": 14,
        "cold_blooded": 12,
        "music": 10,
        "fruit": 9,
        "sport": 10,
        "tree": 8,
        "bird": 7,
        "vegetable": 8,
        "shape": 7,
        "kitchen": 8,
        "water_transportation": 6,
        "sky_transportation": 4,
        "insect": 4,
        "others": 13,
    },
    lists={
        "clipart": (33_525, 14_604),
        "infograph": (36_023, 15_582),
        "painting": (50_416, 21_850),
        "quickdraw": (120_750, 51_750),
        "real": (120_906, 52_041),
        "sketch": (48_212, 20_916),
    },
)
# How the paper's own table spells them.
SPELLINGS = {"vegatable": "vegetable"}
# Cells of base ability, which no expert touches.
CIFAR = "cifar100"
NEUTRAL = "neutral"
