"""The metrics of generated images.

Predictions are `Generated`, references `Wanted`: both carry what the judge says, so
that no metric needs a model. ``KID`` is the squared maximum mean discrepancy with the
kernel ``k(u, v) = (u . v / D + 1)^3`` between features of D numbers, without bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """A generated image and what the judge says about it.

    Attributes:
        image: pixels in -1..1, ``(s, s)``.
        digit: the judge's digit.
        style: the judge's style.
        features: the judge's last hidden layer.
    """

    image: NDArray[np.float32]
    digit: int
    style: str
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """What a prompt asks for.

    Attributes:
        digit: the digit that the judge should see. For a neutral prompt, the one that it
            sees in the base's own image from the same noise.
        style: the style, likewise.
        prompt: the words; items with equal prompts are compared for diversity.
        features: of an image to compare with: a real one of the same cell, or for a
            neutral prompt one of the base's own from other noise.
    """

    digit: int
    style: str
    prompt: str
    features: NDArray[np.float32]


def joint_accuracy(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where digit and style are right, else 0."""
    pairs = zip(predictions, references, strict=True)
    return [float(p.digit == r.digit and p.style == r.style) for p, r in pairs]


def category_accuracy(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where the digit is right, else 0."""
    pairs = zip(predictions, references, strict=True)
    return [float(p.digit == r.digit) for p, r in pairs]


def domain_accuracy(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where the style is right, else 0."""
    pairs = zip(predictions, references, strict=True)
    return [float(p.style == r.style) for p, r in pairs]


def kid(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> tuple[float, float]:
    """KID of the generated images to the references' features, and its standard error."""
    return mmd(_features(predictions), _features(references))


def mmd(one: Array, other: Array) -> tuple[float, float]:
    """The unbiased squared discrepancy of two sets of equally many features.

    Item i of both sets is one draw ``z_i``; the estimate is the mean over i != j of
    ``h(z_i, z_j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)``, and its
    standard error is the jackknife's, in closed form.

    Args:
        one: ``(n, d)``.
        other: ``(n, d)``.

    Returns:
        The value, which may be below 0, and its standard error.
    """
    n = len(one)
    cross = _kernel(one, other)
    h = _kernel(one, one) + _kernel(other, other) - cross - cross.T  # (n, n)
    np.fill_diagonal(h, 0.0)
    return _pairwise_mean(h, np.ones((n, n), bool))


def diversity(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> tuple[float, float]:
    """Mean distance of features between images of equal prompts, and its standard error.

    0 where every prompt gives one and the same image.
    """
    features = _features(predictions)  # (n, d)
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    prompts = np.array([reference.prompt for reference in references])
    return _pairwise_mean(distance, prompts[:, None] == prompts[None])


def _pairwise_mean(values: Array, counted: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean over counted pairs i != j, with the jackknife's standard error over items."""
    counted = counted & ~np.eye(len(values), dtype=bool)
    sums = np.where(counted, values, 0.0).sum(1)  # (n,)
    numbers = counted.sum(1)  # (n,)
    total, pairs = sums.sum(), numbers.sum()
    if pairs == 0:
        return 0.0, float("nan")
    left = pairs - 2 * numbers
    if not left.all():  # without one of them, no pair is left
        return float(total / pairs), float("nan")
    without = (total - 2 * sums) / left  # the mean if item i were not there
    n = len(values)
    variance = (n - 1) / n * np.square(without - without.mean()).sum()
    return float(total / pairs), float(variance**0.5)


def _kernel(one: Array, other: Array) -> Array:
    result: Array = (one @ other.T / one.shape[1] + 1.0) ** 3
    return result


def _features(items: Sequence[Generated] | Sequence[Wanted]) -> Array:
    return np.stack([item.features for item in items]).astype(np.float64)
