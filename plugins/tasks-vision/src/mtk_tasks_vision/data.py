"""Handwritten digits in six visual styles: the grid of the track ``digits-clip``.

The 1797 digits of scikit-learn (8 x 8 pixels) are enlarged to 16 x 16 and drawn in
every style. A cell of the grid is a style and a group of five digits. All splits
are disjoint in *images*: a digit used to test one style is never trained on in
another. Everything here is deterministic and needs numpy and scikit-learn only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mtk_tasks_vision.cells import GROUPS, STYLES, parse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

SIZE = 16
# Images per digit, in this order; what is left over (104 to 113) is the test split.
_PER_DIGIT = {"pretrain": 10, "train": 45, "validation": 15}

# What open_clip calls the preprocessing: (pixel - MEAN) / STD, the same in each
# of the three channels.
MEAN = 0.5
STD = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Some images of one cell.

    Attributes:
        inputs: normalised images, ``(n, 3, SIZE, SIZE)``.
        labels: digits 0 to 9, ``(n,)``.
        ids: image numbers, ``(n,)``; the same number in every style.
    """

    inputs: Floats
    labels: Ints
    ids: Ints


def examples(cell: str, split: str) -> Examples:
    """Return the images of one cell, ordered by image number.

    Args:
        cell: a name such as ``plain-low``.
        split: train, validation or test, or ``pretrain``, which belongs to the base.
    """
    style, group = parse(cell)
    _, labels = _digits()
    ids = np.array(sorted(_splits(split)), dtype=np.int64)
    ids = ids[np.isin(labels[ids], GROUPS[group])]
    pixels = _rendered(style)[ids]
    return Examples(inputs=normalise(pixels), labels=labels[ids], ids=ids)


def normalise(pixels: Floats) -> Floats:
    """Turn pixels in 0..1, ``(n, s, s)``, into model inputs, ``(n, 3, s, s)``."""
    grey = ((pixels - MEAN) / STD).astype(np.float32)
    return np.repeat(grey[:, None], 3, axis=1)


def render(pixels: Floats, style: str, noise: Floats) -> Floats:
    """Draw images in a style.

    Args:
        pixels: ink in 0..1, ``(n, SIZE, SIZE)``.
        style: one of ``STYLES``.
        noise: standard normal numbers of the same shape; some styles are grainy.

    Returns:
        Pixels in 0..1, ``(n, SIZE, SIZE)``.
    """
    if style == "plain":
        drawn = pixels
    elif style == "inverted":
        drawn = 1.0 - pixels
    elif style == "textured":
        drawn = 0.5 * pixels + 0.5 * _weave()
    elif style == "faint":
        drawn = 0.4 + 0.2 * pixels + 0.06 * noise
    elif style == "scanlines":
        lit = (np.arange(SIZE) % 3 > 0)[:, None]
        drawn = np.where(lit, pixels, 0.6)
    elif style == "outline":
        drawn = _edges(pixels)
    else:
        raise ValueError(f"no style named {style!r}; the styles are {STYLES}")
    return np.clip(drawn, 0.0, 1.0).astype(np.float32)


def _weave() -> Floats:
    """A coarse checked cloth, ``(SIZE, SIZE)``: diagonal stripes in two scales."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    fine = (rows + columns) % 4 < 2
    coarse = (rows - columns) % 8 < 4
    cloth: Floats = (0.6 * fine + 0.4 * coarse).astype(np.float32)
    return cloth


def _edges(pixels: Floats) -> Floats:
    """The length of the gradient by central differences, brightest point 1."""
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    dx = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    dy = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    length = np.sqrt(dx * dx + dy * dy)
    brightest = length.max(axis=(1, 2), keepdims=True)
    edges: Floats = (length / np.maximum(brightest, 1e-6)).astype(np.float32)
    return edges


@lru_cache(maxsize=1)
def _digits() -> tuple[Floats, Ints]:
    """All digits as ink in 0..1, ``(1797, SIZE, SIZE)``, and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = (bunch.images / 16.0).astype(np.float32)  # (n, 8, 8)
    up = _upscaling(small.shape[1])  # (SIZE, 8)
    return up @ small @ up.T, bunch.target.astype(np.int64)


def _upscaling(old: int) -> Floats:
    """The matrix of linear interpolation from ``old`` to ``SIZE`` pixels."""
    at = (np.arange(SIZE) + 0.5) * old / SIZE - 0.5
    distance = np.abs(np.clip(at, 0, old - 1)[:, None] - np.arange(old))
    return np.clip(1.0 - distance, 0.0, None).astype(np.float32)


@lru_cache(maxsize=len(STYLES))
def _rendered(style: str) -> Floats:
    pixels, _ = _digits()
    noise = np.random.default_rng(STYLES.index(style)).standard_normal(pixels.shape)
    return render(pixels, style, noise.astype(np.float32))


@lru_cache(maxsize=8)
def _splits(split: str) -> frozenset[int]:
    """Image numbers of a split, the same number of each digit.

    Images are ordered by a hash of their number, which no version of a random
    number generator can change.
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
    return hashlib.sha256(f"digits-clip {image}".encode()).digest()
