"""The grid of the track ``digits-clip``: names only, cheap to import."""

from __future__ import annotations

STYLES = ("plain", "inverted", "textured", "faint", "scanlines", "outline")
GROUPS = {"low": (0, 1, 2, 3, 4), "high": (5, 6, 7, 8, 9)}
CELLS = tuple(f"{style}-{group}" for style in STYLES for group in GROUPS)
# Style i is held in with group i mod 2, so that both groups have three experts.
HELD_IN = tuple(
    f"{style}-{tuple(GROUPS)[i % len(GROUPS)]}" for i, style in enumerate(STYLES)
)
GENERALIZATION = tuple(cell for cell in CELLS if cell not in HELD_IN)
SPLITS = ("train", "validation", "test")
# What the head tells apart: the five digits of the cell's group, or all ten.
HEAD_SCOPES = ("group", "joint")


def parse(cell: str) -> tuple[str, str]:
    """Split a cell's name into its style and its group.

    >>> parse("faint-high")
    ('faint', 'high')
    """
    if cell not in CELLS:
        raise ValueError(f"no cell named {cell!r}; the cells are {', '.join(CELLS)}")
    style, _, group = cell.partition("-")
    return style, group


def classes(cell: str, head_scope: str) -> tuple[int, ...]:
    """Return the digits among which images of a cell are classified.

    >>> classes("faint-high", "group")
    (5, 6, 7, 8, 9)
    """
    if head_scope not in HEAD_SCOPES:
        raise ValueError(f"head_scope is {head_scope!r}; it may be {HEAD_SCOPES}")
    _, group = parse(cell)
    return GROUPS[group] if head_scope == "group" else tuple(range(10))
