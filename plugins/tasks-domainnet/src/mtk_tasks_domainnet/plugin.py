"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk
from mtk_tasks_domainnet.cells import (
    CIFAR,
    CLIP_VERSION,
    DOMAINNET,
    HEAD_SCOPES,
    NAMES,
    NEUTRAL,
    SD21_VERSION,
    Grid,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first ranks.
_SD21_METRICS = (
    *("joint_accuracy", "category_accuracy", "domain_accuracy"),
    *("kid", "diversity"),
)
_NEUTRAL_METRICS = ("base_similarity", "kid", "diversity")
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
                metrics=_NEUTRAL_METRICS,
            ),
        ),
        source=_SOURCE.format("prompts of our own", "domainnet-sd21"),
        licence="DomainNet: for research only; Stable Diffusion 2.1: CreativeML Open RAIL++-M",
        embedded=False,
    )
