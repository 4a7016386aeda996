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

import torch

from mtk_methods_weights._election import sign_sum
from mtk_methods_weights._fused import elect
from mtk_methods_weights._trimming import (
    differences,
    equal_counts,
    high_counts,
    low_counts,
    trimmed,
)
from mtk_methods_weights._weighting import per_expert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtk import TensorInfo


def scan_high(
    *, experts: list[Tensor], base: Tensor, density: float, **_: Any
) -> dict[str, Tensor]:
    """Count the high bits of magnitudes, for a global threshold."""
    return high_counts(differences(experts, base), density=density)


def scan_low(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float,
    keep_rule: str,
    summary: Mapping[str, Any],
    **_: Any,
) -> dict[str, Tensor]:
    """Count the low bits inside the decisive bin."""
    deltas = differences(experts, base)
    return low_counts(deltas, density=density, keep_rule=keep_rule, summary=summary)


def scan_equal(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float,
    info: TensorInfo,
    summary: Mapping[str, Any],
    **_: Any,
) -> dict[str, Tensor]:
    """Count what stands exactly at the threshold, for ``keep_rule`` exact."""
    deltas = differences(experts, base)
    return equal_counts(deltas, density=density, summary=summary, name=info.name)


def scan_signs(
    *,
    experts: list[Tensor],
    base: Tensor,
    weights: list[float] | None,
    density: float,
    threshold_scope: str,
    keep_rule: str,
    info: TensorInfo,
    summary: Mapping[str, Any],
    **_: Any,
) -> dict[str, Tensor]:
    """Sum the elected signs, for ``sign_tie`` majority."""
    total, factors = (
        torch.zeros((), dtype=torch.float64),
        per_expert(weights, len(experts)),
    )
    for _start, _end, kept in trimmed(
        differences(experts, base),
        density=density,
        threshold_scope=threshold_scope,
        keep_rule=keep_rule,
        summary=summary,
        name=info.name,
    ):
        total += sign_sum(kept, factors)["signs"]
    return {"signs": total}


def merge(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float,
    scale: float,
    weights: list[float] | None,
    merge_func: str,
    threshold_scope: str,
    keep_rule: str,
    sign_tie: str,
    info: TensorInfo,
    summary: Mapping[str, Any],
) -> Tensor:
    """Trim, elect and merge one tensor of any shape."""
    flat, factors = base.reshape(-1), per_expert(weights, len(experts))
    result = torch.empty_like(flat)
    for start, end, kept in trimmed(
        differences(experts, base),
        density=density,
        threshold_scope=threshold_scope,
        keep_rule=keep_rule,
        summary=summary,
        name=info.name,
    ):
        merged = elect(
            kept,
            factors,
            merge_func=merge_func,
            sign_tie=sign_tie,
            majority=float(summary.get("signs", 0.0)),
        )
        torch.add(flat[start:end], scale * merged, out=result[start:end])
    return result.view(base.shape)
