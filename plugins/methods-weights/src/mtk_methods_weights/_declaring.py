"""Pieces that several declarations share."""

from __future__ import annotations

import mtk

PACKAGE = "mtk_methods_weights"
WEIGHTS = mtk.Param(
    "weights", None, "one number per expert; default all 1", type="floats"
)
EPS = 1e-8


def choice(name: str, doc: str, *values: str) -> mtk.Param:
    """One of several behaviours; the first is the default."""
    return mtk.Param(name, values[0], doc, choices=values)


def scale(default: float, grid: tuple[float, ...]) -> mtk.Param:
    """Multiplier of the merged task vector, with its own default and grid."""
    return mtk.Param(
        "scale", default, "multiplier of the merged task vector", grid=grid
    )


def normalize(*, default: bool) -> mtk.Param:
    """Whether a weighted sum becomes a weighted mean."""
    return mtk.Param("normalize", default, "divide by the sum of the weights")


def origin() -> mtk.Param:
    """Where the vectors of a geometric rule start."""
    doc = "work on the weights (zero) or on task vectors (base)"
    return choice("origin", doc, "zero", "base")


def ties_params() -> tuple[mtk.Param, ...]:
    """What ties and dare share."""
    return (
        choice(
            "merge_func",
            "merge of the entries that agree with the elected sign",
            "mean",
            "sum",
            "max",
        ),
        choice(
            "threshold_scope",
            "entries that share one threshold: whole model or one tensor",
            "global",
            "tensor",
        ),
        choice(
            "keep_rule",
            "at_least keeps int(n * density) + 1 and all equal ones; exact never more",
            "at_least",
            "exact",
        ),
        choice(
            "sign_tie",
            "elected sign where the sum is exactly 0",
            "majority",
            "positive",
            "negative",
        ),
    )


def ties_scans(module: str, **when: tuple[str, ...]) -> tuple[mtk.Scan, ...]:
    """Passes for a global threshold, and for the majority of signs."""
    shared = when | {"threshold_scope": ("global",)}
    return (
        mtk.Scan(f"{PACKAGE}.{module}:scan_high", shared),
        mtk.Scan(f"{PACKAGE}.{module}:scan_low", shared),
        mtk.Scan(f"{PACKAGE}.{module}:scan_equal", shared | {"keep_rule": ("exact",)}),
        mtk.Scan(f"{PACKAGE}.{module}:scan_signs", when | {"sign_tie": ("majority",)}),
    )
