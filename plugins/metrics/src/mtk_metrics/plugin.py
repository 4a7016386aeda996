"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk

if TYPE_CHECKING:
    from collections.abc import Iterator


@mtk.hookimpl
def mtk_metrics() -> Iterator[mtk.Metric]:
    yield mtk.Metric(
        name="accuracy",
        target="mtk_metrics.accuracy:score",
        summary="Share of predictions equal to the reference",
    )
    yield from _of_text()
    yield from _of_images()


def _of_text() -> Iterator[mtk.Metric]:
    yield mtk.Metric(
        name="exact_match",
        target="mtk_metrics.text:exact_match",
        summary="Share of generated texts equal to the reference",
    )
    yield mtk.Metric(
        name="chrf",
        target="mtk_metrics.text:chrf",
        summary="Overlap of character n-grams with the reference (chrF2, sacrebleu)",
    )


def _of_images() -> Iterator[mtk.Metric]:
    """Of generated images that a judge of the track's has looked at."""
    yield mtk.Metric(
        name="joint_accuracy",
        target="mtk_metrics.images:joint_accuracy",
        summary="Share of generated images whose category and domain are both right",
    )
    yield mtk.Metric(
        name="category_accuracy",
        target="mtk_metrics.images:category_accuracy",
        summary="Share of generated images that show the category asked for",
    )
    yield mtk.Metric(
        name="domain_accuracy",
        target="mtk_metrics.images:domain_accuracy",
        summary="Share of generated images in the domain asked for",
    )
    yield mtk.Metric(
        name="base_agreement",
        target="mtk_metrics.images:joint_accuracy",
        summary="Share of images with the category and domain of the base's own image",
    )
    yield mtk.Metric(
        name="base_similarity",
        target="mtk_metrics.images:base_similarity",
        summary="Cosine of the judge's features with the base's own image",
        low=-1.0,
    )
    yield mtk.Metric(
        name="kid",
        target="mtk_metrics.images:kid",
        summary="Kernel inception distance to reference images, in the judge's features",
        higher_is_better=False,
        low=None,
        high=None,
        kind="set",
    )
    yield mtk.Metric(
        name="diversity",
        target="mtk_metrics.images:diversity",
        summary="Mean distance between images of one prompt, in the judge's features",
        high=None,
        kind="set",
    )
