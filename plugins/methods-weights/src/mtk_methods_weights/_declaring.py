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


def share(
    name: str, default: float, doc: str, grid: tuple[float, ...] = ()
) -> mtk.Param:
    """A share from 0 to 1, for all experts or one for each."""
    return mtk.Param(
        name,
        default,
        f"{doc}; one number, or one per expert",
        low=0.0,
        high=1.0,
        grid=grid,
        type="float_or_floats",
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


def ties_scans(
    module: str, density: str, **when: tuple[str, ...]
) -> tuple[mtk.Scan, ...]:
    """Passes for thresholds, and for the majority of signs.

    ``density`` names the parameter that the thresholds depend on.
    """
    at = f"{PACKAGE}.{module}"
    same = (density, "keep_rule", "threshold_scope")
    whole = when | {"threshold_scope": ("global",)}
    exact = {"keep_rule": ("exact",)}
    at_least = {"keep_rule": ("at_least",)}
    apart = when | {"threshold_scope": ("tensor",)} | at_least
    majority = when | {"sign_tie": ("majority",)}
    needed = f"{at}:needs_threshold"

    def histogram(what: str, place: dict[str, tuple[str, ...]]) -> mtk.Scan:
        each = place is apart
        return mtk.Scan(
            f"{at}:scan_{what}",
            place,
            () if each else same,
            slices="tensor" if each else "model",
            each=each,
            finish=f"{at}:finish_{what}",
            needed=needed,
        )

    return (
        histogram("high", whole),
        histogram("low", whole),
        histogram("high", apart),
        histogram("low", apart),
        mtk.Scan(
            f"{at}:scan_equal",
            whole | exact,
            same,
            finish=f"{at}:finish_equal",
            needed=needed,
        ),
        mtk.Scan(
            f"{at}:scan_own",
            apart | exact,
            each=True,
            finish=f"{at}:finish_own",
            needed=needed,
        ),
        mtk.Scan(f"{at}:scan_signs", majority | at_least, slices="model"),
        mtk.Scan(f"{at}:scan_signs", majority | exact),
    )
