"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk
from mtk_tasks_diffusion.cells import CELLS, HELD_IN, NEUTRAL, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

# Raise it when data, recipes or the shipped base change: old records then do not count.
VERSION = "2"
_METRICS = (
    *("joint_accuracy", "category_accuracy", "domain_accuracy"),
    *("kid", "diversity"),
)


@mtk.hookimpl
def mtk_tasks() -> Iterator[mtk.Track]:
    cells = [
        mtk.Task(
            name=name,
            held_in=name in HELD_IN,
            factors=tuple(zip(("style", "digits"), parse(name), strict=True)),
            metrics=_METRICS,
        )
        for name in CELLS
    ]
    neutral = mtk.Task(
        name=NEUTRAL,
        held_in=False,
        ability=True,
        metrics=("base_agreement", "kid", "diversity"),
    )
    yield mtk.Track(
        name="digits-diffusion",
        target="mtk_tasks_diffusion.track:DigitsDiffusion",
        summary="Digits drawn on request: visual styles x pairs of digits; a small diffusers UNet with LoRA",
        setting="image generation",
        version=VERSION,
        adapter="lora",
        output="gaussian",
        base="UNet2DConditionModel of 0.5 million parameters, without autoencoder",
        tasks=(*cells, neutral),
        source="scikit-learn's digits (UCI optical recognition of handwritten digits, 1998)",
        licence="CC BY 4.0",
    )
