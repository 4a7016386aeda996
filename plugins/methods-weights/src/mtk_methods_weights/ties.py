"""TIES: trim, elect a sign, merge the entries that agree with it.

Paper: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models",
NeurIPS 2023, arXiv:2306.01708.

    tau_i  = theta_i - theta_0, with all but the largest share d of entries set to 0
    gamma  = sign(sum_i w_i tau_i), per entry
    tau    = weighted mean (or sum, or largest) of the entries whose sign is gamma
    theta  = theta_0 + lambda * tau

theta_0: ``base``, theta_i: ``experts[i]``, d: ``density``, w_i: ``weights[i]``, lambda:
``scale``. With ``threshold_scope`` global one threshold per expert holds for the whole
model; scans find it exactly (``_trimming``). A zero sum takes the sign of the sum of
all signs of the model (``sign_tie`` majority), found by a scan too. Density 0 gives
the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk_methods_weights._election import sign_sum
from mtk_methods_weights._fused import elect
from mtk_methods_weights._trimming import (
    HIGH_BINS,
    earlier,
    equal_counts,
    high_counts,
    located,
    low_counts,
    own_thresholds,
    partial,
    thresholds,
    trimmed,
)
from mtk_methods_weights._weighting import each, per_expert

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from mtk import TensorInfo


def needs_threshold(*, density: float | list[float], **_: Any) -> bool:
    """Whether anything is trimmed at a threshold."""
    return partial(each(density, 1))


def scan_high(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float | list[float],
    threshold_scope: str,
    keep_rule: str,
    info: TensorInfo,
    **_: Any,
) -> dict[str, Any]:
    """Count the high bits of magnitudes; find the threshold of a small tensor at once."""
    deltas, densities = differences(experts, base), each(density, len(experts))
    if threshold_scope == "tensor" and is_small(base, info):
        return own_thresholds(deltas, densities, keep_rule)
    return high_counts(deltas, densities)


def finish_high(
    *,
    summary: Mapping[str, Any],
    density: float | list[float],
    keep_rule: str,
    **_: Any,
) -> dict[str, Any]:
    """Single out the decisive bins."""
    count = len(summary["high"] if "high" in summary else summary["thresholds"])
    return located(summary, each(density, count), keep_rule)


def scan_low(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float | list[float],
    keep_rule: str,
    summary: Mapping[str, Any],
    **_: Any,
) -> dict[str, Tensor]:
    """Count the low bits inside the decisive bins."""
    deltas, densities = differences(experts, base), each(density, len(experts))
    return low_counts(deltas, densities, keep_rule, summary)


def finish_low(
    *,
    summary: Mapping[str, Any],
    density: float | list[float],
    keep_rule: str,
    **_: Any,
) -> dict[str, Any]:
    """The thresholds."""
    count = len(summary["low"] if "low" in summary else summary["thresholds"])
    return thresholds(summary, each(density, count), keep_rule)


def scan_equal(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float | list[float],
    info: TensorInfo,
    summary: Mapping[str, Any],
    **_: Any,
) -> dict[str, Tensor]:
    """Count what stands exactly at the threshold, for ``keep_rule`` exact."""
    deltas, densities = differences(experts, base), each(density, len(experts))
    return equal_counts(deltas, densities, summary, info.name)


def finish_equal(*, summary: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    """How many of these stand in the tensors before each one."""
    return {"earlier": earlier(summary)}


def scan_own(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float | list[float],
    keep_rule: str,
    **_: Any,
) -> dict[str, Any]:
    """The thresholds of one tensor, for ``keep_rule`` exact."""
    deltas, densities = differences(experts, base), each(density, len(experts))
    return own_thresholds(deltas, densities, keep_rule)


def finish_own(*, summary: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    """What was found is final."""
    return {key: summary[key] for key in ("thresholds", "quotas")}


def scan_signs(
    *,
    experts: list[Tensor],
    base: Tensor,
    weights: list[float] | None,
    density: float | list[float],
    threshold_scope: str,
    keep_rule: str,
    info: TensorInfo,
    summary: Mapping[str, Any],
    **_: Any,
) -> dict[str, float]:
    """Sum the elected signs, for ``sign_tie`` majority."""
    kept = trimmed(
        differences(experts, base),
        each(density, len(experts)),
        threshold_scope=threshold_scope,
        keep_rule=keep_rule,
        summary=summary,
        name=info.name,
    )
    return sign_sum(kept, per_expert(weights, len(experts)))


def merge(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float | list[float],
    scale: float,
    weights: list[float] | None,
    merge_func: str,
    threshold_scope: str,
    keep_rule: str,
    sign_tie: str,
    info: TensorInfo,
    summary: Mapping[str, Any],
) -> Tensor:
    """Trim, elect and merge; any slice, or with ``keep_rule`` exact a whole tensor."""
    kept = trimmed(
        differences(experts, base),
        each(density, len(experts)),
        threshold_scope=threshold_scope,
        keep_rule=keep_rule,
        summary=summary,
        name=info.name,
    )
    merged = elect(
        kept,
        per_expert(weights, len(experts)),
        merge_func=merge_func,
        sign_tie=sign_tie,
        majority=float(summary.get("signs", 0.0)),
    )
    return merged.mul_(scale).add_(base)


def differences(experts: list[Tensor], base: Tensor) -> Iterator[Tensor]:
    """Task vectors, one at a time."""
    return (expert - base for expert in experts)


def is_small(base: Tensor, info: TensorInfo) -> bool:
    """Whether this is all of a tensor that is smaller than a histogram."""
    return base.shape == info.shape and base.numel() <= HIGH_BINS
