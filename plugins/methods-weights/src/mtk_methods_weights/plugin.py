"""Catalogue of the methods that need weights only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk
from mtk_methods_weights._declaring import (
    EPS,
    PACKAGE,
    WEIGHTS,
    choice,
    normalize,
    origin,
    scale,
    share,
    ties_params,
    ties_scans,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@mtk.hookimpl
def mtk_methods() -> Iterator[mtk.Method]:
    """Yield every declaration of this distribution."""
    yield from _basic()
    yield from _spherical()
    yield from _sparse()
    yield _iso_c()
    yield _emr()
    yield _smile()


def _basic() -> Iterator[mtk.Method]:
    yield mtk.Method(
        name="average",
        target=f"{PACKAGE}.average:merge",
        summary="Uniform mean of the experts",
        paper="arXiv:2203.05482",
        family="basic",
        reference=True,
        idempotent=True,
    )
    yield mtk.Method(
        name="linear",
        target=f"{PACKAGE}.linear:merge",
        summary="Weighted mean of the experts and, if wished, the base",
        paper="arXiv:2109.01903",
        family="basic",
        needs=mtk.Needs(base="optional"),
        params=(
            WEIGHTS,
            normalize(default=True),
            mtk.Param("base_weight", 0.0, "weight of the base as one more model"),
        ),
        idempotent=True,
    )
    yield mtk.Method(
        name="task_arithmetic",
        target=f"{PACKAGE}.task_arithmetic:merge",
        summary="Add the scaled sum of task vectors to the base",
        paper="arXiv:2212.04089",
        family="basic",
        needs=mtk.Needs(base=True),
        params=(
            scale(0.3, (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)),
            WEIGHTS,
            normalize(default=False),
        ),
    )


def _spherical() -> Iterator[mtk.Method]:
    yield mtk.Method(
        name="slerp",
        target=f"{PACKAGE}.slerp:merge",
        summary="Spherical interpolation of two models",
        paper="unpublished; the formula is of Shoemake, SIGGRAPH 1985",
        family="spherical",
        needs=mtk.Needs(base="optional", experts=(2, 2)),
        params=(
            mtk.Param("t", 0.5, "0 = first expert, 1 = second", low=0.0, high=1.0),
            origin(),
            choice(
                "scope",
                "one vector per tensor, per row (last axis) or column (first axis)",
                "tensor",
                "row",
                "column",
            ),
            mtk.Param(
                "dot_threshold",
                0.9995,
                "linear formula where abs(cos) is above it",
                low=0.0,
                high=1.0,
            ),
            mtk.Param(
                "eps", EPS, "smaller norms count as zero", low=0.0, open_low=True
            ),
        ),
        scope="two-pass",
        scans=(
            mtk.Scan(
                f"{PACKAGE}.slerp:scan_tensor",
                {"scope": ("tensor",)},
                slices="tensor",
                each=True,
                finish=f"{PACKAGE}.slerp:finish_tensor",
            ),
            mtk.Scan(
                f"{PACKAGE}.slerp:scan_vectors",
                {"scope": ("row", "column")},
                each=True,
            ),
        ),
        symmetric=False,
        idempotent=True,
    )
    yield mtk.Method(
        name="multislerp",
        target=f"{PACKAGE}.multislerp:merge",
        summary="Spherical mean of any number of models, one tangent step",
        paper="unpublished",
        family="spherical",
        needs=mtk.Needs(base="optional", experts=(2, None)),
        params=(
            WEIGHTS,
            normalize(default=True),
            origin(),
            mtk.Param("eps", EPS, "added to norms", low=0.0, open_low=True),
        ),
        scope="tensor",
        idempotent=True,
    )
    yield mtk.Method(
        name="karcher",
        target=f"{PACKAGE}.karcher:merge",
        summary="Mean on the sphere by fixed-point iteration",
        paper="unpublished",
        family="spherical",
        needs=mtk.Needs(experts=(2, None)),
        params=(
            WEIGHTS,
            mtk.Param("iterations", 10, "most fixed-point steps", low=1),
            mtk.Param(
                "tolerance", 1e-5, "stop at this tangent norm", low=0.0, open_low=True
            ),
        ),
        scope="tensor",
        idempotent=True,
    )


def _sparse() -> Iterator[mtk.Method]:
    yield mtk.Method(
        name="ties",
        target=f"{PACKAGE}.ties:merge",
        summary="Trim, elect signs, merge the entries that agree",
        paper="arXiv:2306.01708",
        family="sparse",
        needs=mtk.Needs(base=True, info=True),
        params=(
            share("density", 0.2, "share of entries kept", grid=(0.1, 0.2)),
            scale(1.0, (0.3, 0.5, 0.8, 1.0, 1.5)),
            WEIGHTS,
            *ties_params(),
        ),
        scope="two-pass",
        scans=ties_scans("ties", "density"),
    )
    yield mtk.Method(
        name="dare",
        target=f"{PACKAGE}.dare:merge",
        summary="Drop task-vector entries at random, rescale, then merge",
        paper="arXiv:2311.03099",
        family="sparse",
        needs=mtk.Needs(base=True, info=True),
        params=(
            share("density", 0.5, "share kept at random", grid=(0.2, 0.5, 0.8)),
            choice(
                "rescale",
                "divide by density, keep the L1 norm of the tensor, or nothing",
                "probability",
                "l1",
                "none",
            ),
            choice(
                "merge",
                "rule for the sparsified task vectors",
                "task_arithmetic",
                "ties",
            ),
            scale(0.3, (0.2, 0.3, 0.5, 1.0)),
            WEIGHTS,
            normalize(default=False),
            mtk.Param("seed", 0, "one stream per (seed, expert, tensor)", low=0),
            share("ties_density", 1.0, "merge ties: share kept after the drop"),
            *ties_params(),
        ),
        scope="two-pass",
        scans=(
            mtk.Scan(
                f"{PACKAGE}.dare:scan_norms",
                {"rescale": ("l1",)},
                slices="tensor",
                each=True,
                finish=f"{PACKAGE}.dare:finish_norms",
            ),
            *ties_scans("dare", "ties_density", merge=("ties",)),
        ),
        stochastic=True,
    )


def _iso_c() -> mtk.Method:
    return mtk.Method(
        name="iso_c",
        target=f"{PACKAGE}.iso_c:merge",
        summary="Sum task matrices and make their spectrum flat",
        paper="arXiv:2502.04959",
        family="spectral",
        needs=mtk.Needs(base=True, info=True),
        params=(
            scale(1.0, (0.3, 0.6, 1.0, 1.5, 2.0)),
            mtk.Param("include", ("*",), "2-D tensors that take the matrix rule"),
            mtk.Param("exclude", (), "2-D tensors taken out of it", type="strings"),
            choice(
                "rest",
                "other tensors: mean of the task vectors times scale, or the base",
                "average",
                "base",
            ),
        ),
        scope="tensor",
    )


def _emr() -> mtk.Method:
    return mtk.Method(
        name="emr",
        target=f"{PACKAGE}.emr:merge",
        summary="One elected task vector, with a mask and a factor per task",
        paper="arXiv:2405.17461",
        family="task-switched",
        needs=mtk.Needs(base=True, task_at_inference=True),
        params=(
            choice(
                "rescaler",
                "ratio of L1 norms of the model, or of sums of mean magnitudes",
                "global",
                "tensor_mean",
            ),
        ),
        scope="two-pass",
        output="per_task",
        scans=(mtk.Scan(f"{PACKAGE}.emr:scan"),),
        decode=f"{PACKAGE}.emr:decode",
        idempotent=True,
    )


def _smile() -> mtk.Method:
    return mtk.Method(
        name="smile",
        target=f"{PACKAGE}.smile:merge",
        summary="Route every token to low-rank differences of the experts",
        paper="arXiv:2408.10174",
        family="routed",
        needs=mtk.Needs(base=True, info=True),
        params=(
            mtk.Param(
                "gate_rank",
                16,
                "right singular vectors per expert in the router",
                low=1,
            ),
            mtk.Param(
                "rank", 32, "rank of each expert; -1 = dense", low=-1, grid=(8, 32, 128)
            ),
            mtk.Param("top_k", 1, "experts per token", low=1),
            choice(
                "router_source",
                "matrix whose singular vectors route",
                "difference",
                "weight",
            ),
            choice("rest", "tensors outside linear layers", "base", "average"),
        ),
        scope="tensor",
        output="routed",
        route=f"{PACKAGE}.smile:route",
    )
