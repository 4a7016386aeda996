"""What the base of ``digits-clip`` can do and no expert is trained for: printed digits.

Glyphs of the font that the base was trained on, drawn anew with seeds of their own, in
all styles in turn, and classified among all ten digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtk_tasks_vision import data, glyphs
from mtk_tasks_vision.cells import SPLITS, STYLES

# The base was trained with seed 0; these are far from it.
_FIRST_SEED = 1_000_000
ITEMS = 300  # of each split: five of each digit in each style


def examples(split: str) -> tuple[Tensor, Tensor]:
    """Return the images of one split.

    Returns:
        Normalised images, ``(n, 3, SIZE, SIZE)``, and digits, int64 ``(n,)``.
    """
    generator = torch.Generator().manual_seed(_FIRST_SEED + SPLITS.index(split))
    number = torch.arange(ITEMS)
    digits, styles = number % 10, number // 10 % len(STYLES)
    ink = glyphs.draw(digits, generator)
    noise = torch.randn(ink.shape, generator=generator)
    inputs = torch.empty(ITEMS, 3, data.SIZE, data.SIZE)
    for i, style in enumerate(STYLES):
        mine = styles == i
        pixels = data.render(ink[mine].numpy(), style, noise[mine].numpy())
        inputs[mine] = torch.from_numpy(data.normalise(pixels))
    return inputs, digits
