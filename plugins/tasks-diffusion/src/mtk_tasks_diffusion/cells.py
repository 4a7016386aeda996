"""The grid of the track ``digits-diffusion``: names only, cheap to import."""

from __future__ import annotations

STYLES = ("plain", "inverted", "textured", "faint", "scanlines")
GROUPS = {"01": (0, 1), "23": (2, 3), "45": (4, 5), "67": (6, 7), "89": (8, 9)}
CELLS = tuple(f"{style}-{group}" for style in STYLES for group in GROUPS)
# The diagonal: style i is held in with group i.
HELD_IN = tuple(f"{style}-{group}" for style, group in zip(STYLES, GROUPS, strict=True))
GENERALIZATION = tuple(cell for cell in CELLS if cell not in HELD_IN)
# Prompts that lack the digit, the style or both: what no expert was trained on.
NEUTRAL = "neutral"
SPLITS = ("train", "validation", "test")

DIGIT_NAMES = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)
# A prompt is two words: a digit (or the blank) and a style (or the blank).
BLANK = ""
WORDS = (*DIGIT_NAMES, *STYLES, BLANK)


def parse(cell: str) -> tuple[str, str]:
    """Split a cell's name into its style and its group.

    >>> parse("faint-67")
    ('faint', '67')
    """
    if cell not in CELLS:
        raise ValueError(f"no cell named {cell!r}; the cells are {', '.join(CELLS)}")
    style, _, group = cell.partition("-")
    return style, group


def prompt(digit: int | None, style: str | None) -> tuple[int, int]:
    """Return the positions in ``WORDS`` of a prompt's two words.

    >>> [WORDS[i] for i in prompt(7, "faint")]
    ['seven', 'faint']
    >>> [WORDS[i] for i in prompt(None, "faint")]
    ['', 'faint']
    """
    first = BLANK if digit is None else DIGIT_NAMES[digit]
    second = BLANK if style is None else style
    return WORDS.index(first), WORDS.index(second)
