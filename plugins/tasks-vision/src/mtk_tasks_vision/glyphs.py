"""Printed digits for pre-training: a 5 x 7 dot font, bent and shifted at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mtk_tasks_vision.data import SIZE

# One string per row of dots, ten digits side by side.
_FONT = """
.###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...#
#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#.
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .##..
"""

# How far a glyph may be bent: radians, shear, relative size, and shift as a
# fraction of half the image.
_TURN, _SHEAR, _STRETCH, _SHIFT = 0.2, 0.3, 0.15, 0.12
# The font's dots fill this part of the image at normal size.
_HEIGHT, _WIDTH = 0.85, 0.7


def draw(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each digit with a random affine bend and a random stroke width.

    Args:
        digits: int64, ``(n,)``.
        generator: source of all randomness.

    Returns:
        Ink in 0..1, ``(n, SIZE, SIZE)``.
    """
    n = len(digits)

    def uniform(bound: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * bound  # (n,)

    turn, shear = uniform(_TURN), uniform(_SHEAR)
    wide, high = 1 + uniform(_STRETCH), 1 + uniform(_STRETCH)
    rows = (  # output position to font position: (n, 2, 3)
        torch.stack([turn.cos(), -turn.sin() + shear, uniform(_SHIFT)], dim=1)
        / (wide * _WIDTH)[:, None],
        torch.stack([turn.sin(), turn.cos(), uniform(_SHIFT)], dim=1)
        / (high * _HEIGHT)[:, None],
    )
    grid = functional.affine_grid(
        torch.stack(rows, dim=1), [n, 1, SIZE, SIZE], align_corners=False
    )
    dots = _bitmaps()[digits].unsqueeze(1)  # (n, 1, 7, 5)
    ink = functional.grid_sample(dots, grid, align_corners=False).squeeze(1)
    strength = 1.0 + torch.rand(n, generator=generator)[:, None, None]
    return (ink * strength).clamp(0.0, 1.0)


def _bitmaps() -> Tensor:
    """The font as zeros and ones, ``(10, 7, 5)``."""
    lines = [line.split() for line in _FONT.split("\n") if line]
    return torch.tensor(
        [[[float(dot == "#") for dot in row[d]] for row in lines] for d in range(10)]
    )
