"""The metrics of generated images, by what a judge saw in them (:mod:`mtk.images`).

With features u, v of D numbers, KID is the squared maximum mean discrepancy for the kernel
``k(u, v) = (u . v / D + 1)^3``, without bias (Binkowski et al., arXiv 1801.01401).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtk.images import Generated, Wanted

    Array = NDArray[np.float64]


def joint_accuracy(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where category and domain are right on the same image, else 0."""
    pairs = zip(predictions, references, strict=True)
    return [float(p.category == r.category and p.domain == r.domain) for p, r in pairs]


def category_accuracy(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where the category is right, else 0."""
    pairs = zip(predictions, references, strict=True)
    return [float(p.category == r.category) for p, r in pairs]


def domain_accuracy(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where the domain is right, else 0."""
    pairs = zip(predictions, references, strict=True)
    return [float(p.domain == r.domain) for p, r in pairs]


def base_similarity(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """Cosine of features with the base's own image from the same noise; 1 for the base."""
    found = []
    for p, r in zip(predictions, references, strict=True):
        if r.twin is None:
            raise ValueError("base_similarity needs references with a twin")
        made, own = p.features.astype(np.float64), r.twin.astype(np.float64)
        length = float(np.linalg.norm(made) * np.linalg.norm(own))
        found.append(float(np.clip(made @ own / length, -1.0, 1.0)) if length else 0.0)
    return found


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

    Raises:
        ValueError: there are fewer than two items.
    """
    n = len(one)
    if n < 2:
        raise ValueError("KID needs at least two images")
    cross = _kernel(one, other)
    h = _kernel(one, one) + _kernel(other, other) - cross - cross.T  # (n, n)
    return _pairwise_mean(h, np.ones((n, n), bool))


def diversity(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> tuple[float, float]:
    """Mean distance of features between images of equal prompts, and its standard error.

    0 where every prompt gives one and the same image.

    Raises:
        ValueError: no two images have the same prompt.
    """
    features = _features(predictions)  # (n, d)
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    prompts = np.array([reference.prompt for reference in references])
    if len(np.unique(prompts)) == len(prompts):
        raise ValueError("diversity needs two images of one prompt")
    return _pairwise_mean(distance, prompts[:, None] == prompts[None])


def _pairwise_mean(values: Array, counted: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean over counted pairs i != j, with the jackknife's standard error over items.

    The error is no number (nan) where everything hangs on one item.
    """
    counted = counted & ~np.eye(len(values), dtype=bool)
    sums = np.where(counted, values, 0.0).sum(1)  # (n,)
    numbers = counted.sum(1)  # (n,)
    total, pairs = sums.sum(), numbers.sum()
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
