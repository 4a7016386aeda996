"""Catalogue of the methods that learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "mtk_methods_adaptive"


@mtk.hookimpl
def mtk_methods() -> Iterator[mtk.Method]:
    """Yield every declaration of this distribution."""
    yield mtk.Method(
        name="adamerging",
        target=f"{PACKAGE}.adamerging:merge",
        summary="Learn coefficients by minimising the entropy of predictions",
        paper="arXiv:2310.02575",
        family="adaptive",
        needs=mtk.Needs(
            base=True,
            data="unlabelled",
            split="validation",
            gradients=True,
            outputs=("categorical",),
        ),
        params=(
            mtk.Param(
                "granularity",
                "tensor",
                "one coefficient per tensor and expert, or per expert",
                choices=("tensor", "task"),
            ),
            mtk.Param(
                "plus_plus", False, "trim and sign-filter the task vectors first"
            ),
            mtk.Param("density", 0.2, "plus_plus: share kept", low=0.0, high=1.0),
            mtk.Param("clamp", True, "clamp coefficients to [0, 1] when used"),
            mtk.Param(
                "initial", 0.3, "start of the coefficients", type="float_or_floats"
            ),
            mtk.Param("learning_rate", 1e-3, "Adam step size", low=0.0, open_low=True),
            mtk.Param("steps", 500, "Adam steps", low=0),
            mtk.Param("batch_size", 16, "inputs per batch", low=1),
            mtk.Param("batches_per_step", 1, "batches per task and step", low=1),
            mtk.Param("seed", 0, "order of the data", low=0),
        ),
        scope="model",
        stochastic=True,
    )
