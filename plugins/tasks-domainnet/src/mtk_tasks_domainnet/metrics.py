"""The metrics of generated images.

Predictions are `Generated` and references `Wanted`; both carry what the judge saw, so that
no metric needs a model. With features u, v of D numbers, KID is the squared maximum mean
discrepancy for the kernel ``k(u, v) = (u . v / D + 1)^3``, without bias. CLIP's features
have length 1 and are scaled by ``sqrt(D)`` first, else the kernel would hardly bend.
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
    """What the judge says about a generated image.

    Attributes:
        category, domain: what it takes the image for.
        features: CLIP's embedding, of length 1, ``(d,)``.
    """

    category: str
    domain: str
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """What was asked for.

    Attributes:
        category, domain: what the image is to show; empty for neutral prompts.
        features: of a real image of the same cell; for a neutral prompt, of one of the
            base's own from other noise.
        twin: for a neutral prompt, of the base's own image from the same noise.
    """

    category: str
    domain: str
    features: NDArray[np.float32]
    twin: NDArray[np.float32] | None = None


def joint(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where class and domain are right, else 0."""
    return [
        float(p.category == r.category and p.domain == r.domain)
        for p, r in zip(predictions, references, strict=True)
    ]


def category(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where the class is right, else 0."""
    pairs = zip(predictions, references, strict=True)
    return [float(p.category == r.category) for p, r in pairs]


def domain(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """1 where the domain is right, else 0."""
    pairs = zip(predictions, references, strict=True)
    return [float(p.domain == r.domain) for p, r in pairs]


def agreement(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> list[float]:
    """The cosine with the base's own image from the same noise; 1 for the base."""
    found = []
    for p, r in zip(predictions, references, strict=True):
        if r.twin is None:
            raise ValueError("agreement is for neutral prompts only")
        found.append(float(np.clip(np.dot(p.features, r.twin), -1.0, 1.0)))
    return found


def kid(
    *, predictions: Sequence[Generated], references: Sequence[Wanted]
) -> tuple[float, float]:
    """KID of two sets of equally many images, and its jackknife standard error."""
    made = _scaled([p.features for p in predictions])
    real = _scaled([r.features for r in references])
    return discrepancy(made, real)


def discrepancy(one: Array, other: Array) -> tuple[float, float]:
    """The unbiased squared discrepancy of two sets, (n, d) each, and its standard error.

    Every term ``h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)`` with
    i != j counts once. Leaving out item i leaves out its row and column, so that the
    jackknife's n values follow from the row sums.
    """
    n = len(one)
    if n < 2:
        raise ValueError("KID needs at least two images")
    cross = _kernel(one, other)
    terms = _kernel(one, one) + _kernel(other, other) - cross - cross.T  # (n, n)
    np.fill_diagonal(terms, 0.0)
    value = terms.sum() / (n * (n - 1))
    if n == 2:  # one pair: nothing is left without either
        return float(value), 0.0
    left = (terms.sum() - 2 * terms.sum(1)) / ((n - 1) * (n - 2))  # (n,)
    variance = (n - 1) / n * np.square(left - left.mean()).sum()
    return float(value), float(np.sqrt(variance))


def _kernel(one: Array, other: Array) -> Array:
    result: Array = (one @ other.T / one.shape[1] + 1.0) ** 3
    return result


def _scaled(features: Sequence[NDArray[np.float32]]) -> Array:
    stacked = np.stack(features).astype(np.float64)
    result: Array = stacked * np.sqrt(stacked.shape[1])
    return result
