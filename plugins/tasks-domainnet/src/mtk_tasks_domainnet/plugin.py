"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk
from mtk_tasks_domainnet.cells import (
    CIFAR,
    DOMAINNET,
    HEAD_SCOPES,
    NAMES,
    NEUTRAL,
    Grid,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Raise them when data or recipes change: old records then do not count.
CLIP_VERSION = "1"
SD21_VERSION = "1"
_SD21_METRICS = (
    *("domainnet_joint", "domainnet_category", "domainnet_domain"),
    "domainnet_kid",
)
_SOURCE = (
    "DomainNet (Peng et al. 2019, arXiv 1812.01754) and {}; brought by the user: "
    "mtk tracks prepare {} --root DIR"
)


def tasks(
    grid: Grid, metrics: tuple[str, ...], ability: mtk.Task
) -> tuple[mtk.Task, ...]:
    """The cells of a grid, and one of base ability."""
    cells = [
        mtk.Task(
            name=cell,
            held_in=cell in grid.held_in,
            factors=tuple(zip(("domain", "group"), grid.parse(cell), strict=True)),
            metrics=metrics,
        )
        for cell in (
            *grid.held_in,
            *(cell for cell in grid.cells if cell not in grid.held_in),
        )
    ]
    return (*cells, ability)


@mtk.hookimpl
def mtk_tasks() -> Iterator[mtk.Track]:
    scope = mtk.Param(
        "head_scope",
        HEAD_SCOPES[0],
        "classes to tell apart: all of the grid, or those of the cell's group",
        choices=HEAD_SCOPES,
    )
    yield mtk.Track(
        name="domainnet-clip",
        target="mtk_tasks_domainnet.clip_track:DomainNetClip",
        summary="DomainNet, 6 domains x 24 groups of classes; CLIP ViT-B/32, zero-shot heads",
        setting="image classification",
        version=CLIP_VERSION,
        adapter="full",
        merge=("visual.*",),
        base="open_clip ViT-B-32, laion2b_s34b_b79k",
        options=(
            scope,
            mtk.Param(
                "names",
                NAMES[0],
                "how prompts write a class: as its key, or with spaces",
                choices=NAMES,
            ),
        ),
        tasks=tasks(
            DOMAINNET,
            ("accuracy",),
            mtk.Task(name=CIFAR, held_in=False, ability=True),
        ),
        source=_SOURCE.format("CIFAR-100", "domainnet-clip"),
        licence="DomainNet: for research only; CLIP weights: MIT",
        embedded=False,
    )
    yield mtk.Track(
        name="domainnet-sd21",
        target="mtk_tasks_domainnet.sd21_track:DomainNetSd21",
        summary="DomainNet on request, 6 domains x 24 groups; Stable Diffusion 2.1 with LoRA",
        setting="image generation",
        version=SD21_VERSION,
        adapter="lora",
        output="gaussian",
        base="UNet of Stable Diffusion 2.1",
        options=(
            scope,
            mtk.Param(
                "images", 20, "generated images per cell of the test split", low=2
            ),
            mtk.Param("steps", 25, "steps of the sampler", low=1),
            mtk.Param("guidance", 7.5, "classifier-free guidance; 1 is none", low=1),
        ),
        tasks=tasks(
            DOMAINNET,
            _SD21_METRICS,
            mtk.Task(
                name=NEUTRAL,
                held_in=False,
                ability=True,
                metrics=("domainnet_agreement", "domainnet_kid"),
            ),
        ),
        source=_SOURCE.format("prompts of our own", "domainnet-sd21"),
        licence="DomainNet: for research only; Stable Diffusion 2.1: CreativeML Open RAIL++-M",
        embedded=False,
    )


@mtk.hookimpl
def mtk_metrics() -> Iterator[mtk.Metric]:
    yield mtk.Metric(
        name="domainnet_joint",
        target="mtk_tasks_domainnet.metrics:joint",
        summary="Share of generated images whose class and domain are both right",
    )
    yield mtk.Metric(
        name="domainnet_category",
        target="mtk_tasks_domainnet.metrics:category",
        summary="Share of generated images that CLIP takes for the class asked for",
    )
    yield mtk.Metric(
        name="domainnet_domain",
        target="mtk_tasks_domainnet.metrics:domain",
        summary="Share of generated images that a linear probe takes for the domain asked for",
    )
    yield mtk.Metric(
        name="domainnet_agreement",
        target="mtk_tasks_domainnet.metrics:agreement",
        summary="Cosine of CLIP features with the base's own image from the same noise",
        low=-1.0,
    )
    yield mtk.Metric(
        name="domainnet_kid",
        target="mtk_tasks_domainnet.metrics:kid",
        summary="Kernel inception distance to real images, in CLIP's features",
        higher_is_better=False,
        low=None,
        high=None,
        kind="set",
    )
