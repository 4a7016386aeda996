"""Handwritten digits in five visual styles: the images of ``digits-diffusion``.

The 1797 digits of scikit-learn stay at their 8 x 8 pixels, in -1..1, and are drawn in
every style. All splits are disjoint in *images*: a digit that is used to test one
style is never trained on in another. Everything here is deterministic and needs numpy
and scikit-learn only.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mtk_tasks_diffusion.cells import GROUPS, STYLES, parse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

SIZE = 8
# Images per digit, in this order; what is left over (38 to 47) is the test split.
_PER_DIGIT = {"train": 120, "validation": 16}


def images(
    style: str, digits: tuple[int, ...], split: str
) -> tuple[Floats, Ints, Ints]:
    """Return all images of some digits in one style, ordered by image number.

    Returns:
        Pixels in -1..1, ``(n, SIZE, SIZE)``; digits ``(n,)``; image numbers ``(n,)``,
        the same in every style.
    """
    pixels, labels = _digits()
    ids = np.array(sorted(_splits(split)), dtype=np.int64)
    ids = ids[np.isin(labels[ids], digits)]
    return render(pixels[ids], style), labels[ids], ids


def of_cell(cell: str, split: str) -> tuple[Floats, Ints, Ints]:
    """Return all images of one cell; see `images`."""
    style, group = parse(cell)
    return images(style, GROUPS[group], split)


def render(pixels: Floats, style: str) -> Floats:
    """Draw images in a style.

    Args:
        pixels: ink in -1..1, ``(n, SIZE, SIZE)``.
        style: one of ``STYLES``.

    Returns:
        Pixels in -1..1, the same shape.
    """
    if style == "plain":
        drawn = pixels
    elif style == "inverted":
        drawn = -pixels
    elif style == "textured":
        drawn = np.maximum(pixels, _checks())
    elif style == "faint":
        drawn = 0.35 * pixels - 0.2
    elif style == "scanlines":
        dark = (np.arange(SIZE) % 2 == 1)[:, None]
        drawn = np.where(dark, -1.0, pixels)
    else:
        raise ValueError(f"no style named {style!r}; the styles are {STYLES}")
    result: Floats = drawn.astype(np.float32)
    return result


def _checks() -> Floats:
    """A chequered ground that lies behind the ink, ``(SIZE, SIZE)``."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    ground: Floats = np.where((rows + columns) % 2 == 0, 0.2, -1.0)
    return ground


@lru_cache(maxsize=1)
def _digits() -> tuple[Floats, Ints]:
    """All digits as ink in -1..1, ``(1797, SIZE, SIZE)``, and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 8.0 - 1.0).astype(np.float32), bunch.target.astype(np.int64)


@lru_cache(maxsize=8)
def _splits(split: str) -> frozenset[int]:
    """Image numbers of a split, the same number of each digit.

    Images are ordered by a hash of their number, which no version of a random number
    generator can change.
    """
    names = (*_PER_DIGIT, "test")
    if split not in names:
        raise ValueError(f"no split named {split!r}; the splits are {names}")
    _, labels = _digits()
    chosen: list[int] = []
    for digit in range(10):
        order = sorted(np.flatnonzero(labels == digit).tolist(), key=_shuffle_key)
        start = 0
        for name in names:
            stop = start + _PER_DIGIT.get(name, len(order))
            if name == split:
                chosen += order[start:stop]
            start = stop
    return frozenset(chosen)


def _shuffle_key(image: int) -> bytes:
    return hashlib.sha256(f"digits-diffusion {image}".encode()).digest()
