"""Catalogue of the methods that need a statistic of each expert's data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "mtk_methods_statistics"


def _examples() -> mtk.Param:
    return mtk.Param("examples", 1000, "inputs per expert", low=1, stage="statistic")


@mtk.hookimpl
def mtk_methods() -> Iterator[mtk.Method]:
    """Yield every declaration of this distribution."""
    yield mtk.Method(
        name="fisher",
        target=f"{PACKAGE}.fisher:merge",
        summary="Mean weighted, entry by entry, with Fisher information",
        paper="arXiv:2111.09832",
        family="statistics",
        needs=mtk.Needs(statistics=("fisher",)),
        params=(
            mtk.Param(
                "weights", None, "one number per expert; default all 1", type="floats"
            ),
            mtk.Param(
                "fisher_norm",
                "model",
                "divide each Fisher by its L2 norm over the model, or per tensor",
                choices=("none", "model", "tensor"),
            ),
            mtk.Param("floor", 1e-6, "smallest Fisher value", low=0.0),
            mtk.Param(
                "floor_mode",
                "max",
                "raise smaller entries to the floor, or add it to all",
                choices=("max", "add"),
            ),
            mtk.Param("favor_target", False, "floor the first expert's Fisher only"),
            mtk.Param(
                "estimator",
                "exact",
                "labels the Fisher is computed with",
                choices=("exact", "sampled", "empirical", "argmax"),
                stage="statistic",
            ),
            _examples(),
        ),
        scope="two-pass",
        scans=(mtk.Scan(f"{PACKAGE}.fisher:scan_norms", {"fisher_norm": ("model",)}),),
        idempotent=True,
    )
    yield mtk.Method(
        name="regmean",
        target=f"{PACKAGE}.regmean:merge",
        summary="Least-squares fit of every linear layer to all experts' outputs",
        paper="arXiv:2212.09849",
        family="statistics",
        needs=mtk.Needs(statistics=("gram",)),
        params=(
            mtk.Param(
                "off_diagonal_scale",
                0.9,
                "factor on the off-diagonal entries of each Gram matrix",
                low=0.0,
                high=1.0,
                grid=(0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
            ),
            mtk.Param(
                "weights",
                None,
                "one number >= 0 per expert; default all 1",
                low=0.0,
                type="floats",
            ),
            _examples(),
        ),
        scope="tensor",
        idempotent=True,
    )
