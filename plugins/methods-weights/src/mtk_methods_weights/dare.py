"""DARE: drop entries of task vectors at random, rescale the rest, then merge.

Paper: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous
Models as a Free Lunch", ICML 2024, arXiv:2311.03099.

    m_i    ~ Bernoulli(d), per entry
    tau_i' = m_i * (theta_i - theta_0) / d
    theta  = theta_0 + lambda * sum_i w_i tau_i'          or TIES of the tau_i'

theta_0: ``base``, theta_i: ``experts[i]``, d: ``density`` (1 - the drop rate p),
lambda: ``scale``, w_i: ``weights[i]``. ``rescale`` l1 restores the L1 norm of the
tensor instead of dividing by d. With ``merge`` ties, ``ties_density`` trims after
the drop. Masks come from ``random``, one stream per (seed, expert, tensor), so that
every scan and the merge see the same ones. Density 0 gives the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk_methods_weights._election import disjoint, sign_sum
from mtk_methods_weights._trimming import (
    PIECE,
    differences,
    equal_counts,
    high_counts,
    low_counts,
    steps,
    trim,
)
from mtk_methods_weights._weighting import divisor, per_expert, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtk import TensorInfo
    from mtk.randomness import Random


def sparsify(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float,
    rescale: str,
    random: Random,
    **_: Any,
) -> list[Tensor]:
    """The task vectors after drop and rescale."""
    result = []
    for index, expert in enumerate(experts):
        delta = expert - base
        kept = torch.where(random.keep_mask(index, density, delta), delta, 0.0)
        if rescale == "probability" and density > 0:
            kept = kept / density
        elif rescale == "l1":
            before, after = delta.abs().sum(), kept.abs().sum()
            # Nothing kept, nothing to rescale: the ratio would be 0/0 or infinite.
            kept = kept * torch.where(after > 0, before / after, 1.0)
        result.append(kept)
    return result


def scan_high(*, ties_density: float, **given: Any) -> dict[str, Tensor]:
    """Count the high bits of magnitudes, for a global threshold."""
    return high_counts(sparsify(**given), density=ties_density)


def scan_low(
    *, ties_density: float, keep_rule: str, summary: Mapping[str, Any], **given: Any
) -> dict[str, Tensor]:
    """Count the low bits inside the decisive bin."""
    return low_counts(
        sparsify(**given), density=ties_density, keep_rule=keep_rule, summary=summary
    )


def scan_equal(
    *, ties_density: float, info: TensorInfo, summary: Mapping[str, Any], **given: Any
) -> dict[str, Tensor]:
    """Count what stands exactly at the threshold, for ``keep_rule`` exact."""
    return equal_counts(
        sparsify(**given), density=ties_density, summary=summary, name=info.name
    )


def scan_signs(*, weights: list[float] | None, **given: Any) -> dict[str, Tensor]:
    """Sum the elected signs, for ``sign_tie`` majority."""
    kept = _trimmed(**given)
    return sign_sum(kept, per_expert(weights, len(kept)))


def merge(
    *,
    base: Tensor,
    merge: str,
    scale: float,
    weights: list[float] | None,
    normalize: bool,
    merge_func: str,
    sign_tie: str,
    summary: Mapping[str, Any],
    **given: Any,
) -> Tensor:
    """Sparsify and merge one tensor of any shape."""
    if merge == "task_arithmetic" and given["rescale"] != "l1":
        return _dropped(
            base=base, scale=scale, weights=weights, normalize=normalize, **given
        )
    if merge == "task_arithmetic":
        sparse = sparsify(base=base, **given)
        factors = per_expert(weights, len(sparse))
        total = weighted_sum(sparse, factors, base)
        return base + total * (scale / divisor(factors, normalize=normalize))
    kept = _trimmed(base=base, summary=summary, **given)
    merged = disjoint(
        kept,
        per_expert(weights, len(kept)),
        merge_func=merge_func,
        sign_tie=sign_tie,
        majority=float(summary.get("signs", 0.0)),
    )
    return base + scale * merged


def _dropped(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float,
    rescale: str,
    random: Random,
    scale: float,
    weights: list[float] | None,
    normalize: bool,
    **_: Any,
) -> Tensor:
    """Task arithmetic of what is left, piece by piece; values as from wholes."""
    factors, flat = per_expert(weights, len(experts)), base.reshape(-1)
    factor = scale / divisor(factors, normalize=normalize)
    total = torch.zeros_like(flat)
    for index, delta in enumerate(differences(experts, base)):
        if not factors[index]:
            continue
        mask = random.keep_mask(index, density, base).reshape(-1)
        for start, end in steps(len(flat), PIECE):
            kept = delta.piece(start, end).mul_(mask[start:end])
            if rescale == "probability" and density > 0:
                kept.div_(density)
            total[start:end].add_(kept, alpha=factors[index])
    for start, end in steps(len(flat), PIECE):
        torch.add(flat[start:end], total[start:end] * factor, out=total[start:end])
    return total.view(base.shape)


def _trimmed(
    *,
    ties_density: float,
    threshold_scope: str,
    keep_rule: str,
    summary: Mapping[str, Any],
    info: TensorInfo,
    **given: Any,
) -> list[Tensor]:
    return trim(
        sparsify(**given),
        density=ties_density,
        threshold_scope=threshold_scope,
        keep_rule=keep_rule,
        summary=summary,
        name=info.name,
    )
