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

from mtk_methods_weights import ties
from mtk_methods_weights._election import sign_sum
from mtk_methods_weights._fused import elect
from mtk_methods_weights._trimming import (
    equal_counts,
    high_counts,
    low_counts,
    own_thresholds,
    partial,
    trimmed,
)
from mtk_methods_weights._weighting import divisor, each, per_expert, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from mtk import TensorInfo
    from mtk.randomness import Random


def sparsify(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float | list[float],
    rescale: str,
    random: Random,
    summary: Mapping[str, Any],
    **_: Any,
) -> Iterator[Tensor]:
    """The task vectors after drop and rescale, one at a time; any slice."""
    for index, share in enumerate(each(density, len(experts))):
        kept = random.drop(index, share, experts[index] - base)
        if rescale == "probability" and share > 0:
            kept = kept.div_(share)
        elif rescale == "l1":
            kept = kept.mul_(_ratios(summary)[index])
        yield kept


def scan_norms(
    *,
    experts: list[Tensor],
    base: Tensor,
    density: float | list[float],
    random: Random,
    **_: Any,
) -> dict[str, Tensor]:
    """L1 norms of each task vector before and after the drop, (k,)."""
    before, after = [], []
    for index, share in enumerate(each(density, len(experts))):
        delta = experts[index] - base
        kept = random.drop(index, share, delta)
        before.append(delta.abs().sum(dtype=torch.float64))
        after.append(kept.abs().sum(dtype=torch.float64))
    return {"before": torch.stack(before), "after": torch.stack(after)}


def finish_norms(*, summary: Mapping[str, Any], **_: Any) -> dict[str, list[float]]:
    """What restores the norms."""
    return {"ratios": _ratios(summary)}


def _ratios(summary: Mapping[str, Any]) -> list[float]:
    if "ratios" in summary:
        known: list[float] = summary["ratios"]
        return known
    pairs = zip(summary["before"].tolist(), summary["after"].tolist(), strict=True)
    # Nothing kept, nothing to rescale: the ratio would be 0/0 or infinite.
    return [before / after if after > 0 else 1.0 for before, after in pairs]


def needs_threshold(*, ties_density: float | list[float], **_: Any) -> bool:
    """Whether anything is trimmed at a threshold."""
    return partial(each(ties_density, 1))


def scan_high(
    *,
    ties_density: float | list[float],
    threshold_scope: str,
    keep_rule: str,
    info: TensorInfo,
    **given: Any,
) -> dict[str, Any]:
    """Count the high bits of magnitudes; find the threshold of a small tensor at once."""
    densities = each(ties_density, len(given["experts"]))
    if threshold_scope == "tensor" and ties.is_small(given["base"], info):
        return own_thresholds(sparsify(**given), densities, keep_rule)
    return high_counts(sparsify(**given), densities)


def finish_high(
    *, ties_density: float | list[float], density: object, **given: Any
) -> dict[str, Any]:
    """Single out the decisive bins."""
    del density  # of the drop; thresholds depend on the other one
    return ties.finish_high(density=ties_density, **given)


def scan_low(
    *,
    ties_density: float | list[float],
    keep_rule: str,
    summary: Mapping[str, Any],
    **given: Any,
) -> dict[str, Tensor]:
    """Count the low bits inside the decisive bins."""
    densities = each(ties_density, len(given["experts"]))
    deltas = sparsify(summary=summary, **given)
    return low_counts(deltas, densities, keep_rule, summary)


def finish_low(
    *, ties_density: float | list[float], density: object, **given: Any
) -> dict[str, Any]:
    """The thresholds."""
    del density
    return ties.finish_low(density=ties_density, **given)


def scan_equal(
    *,
    ties_density: float | list[float],
    info: TensorInfo,
    summary: Mapping[str, Any],
    **given: Any,
) -> dict[str, Tensor]:
    """Count what stands exactly at the threshold, for ``keep_rule`` exact."""
    densities = each(ties_density, len(given["experts"]))
    deltas = sparsify(summary=summary, **given)
    return equal_counts(deltas, densities, summary, info.name)


def finish_equal(*, summary: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    """How many of these stand in the tensors before each one."""
    return ties.finish_equal(summary=summary)


def scan_own(
    *, ties_density: float | list[float], keep_rule: str, **given: Any
) -> dict[str, Any]:
    """The thresholds of one tensor, for ``keep_rule`` exact."""
    densities = each(ties_density, len(given["experts"]))
    return own_thresholds(sparsify(**given), densities, keep_rule)


def finish_own(*, summary: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    """What was found is final."""
    return ties.finish_own(summary=summary)


def scan_signs(*, weights: list[float] | None, **given: Any) -> dict[str, float]:
    """Sum the elected signs, for ``sign_tie`` majority."""
    kept = _trimmed(**given)
    return sign_sum(kept, per_expert(weights, len(kept)))


def merge(
    *,
    experts: list[Tensor],
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
    """Sparsify and merge; any slice, or with ``keep_rule`` exact a whole tensor."""
    factors = per_expert(weights, len(experts))
    given |= {"experts": experts, "base": base, "summary": summary}
    if merge == "task_arithmetic":
        total = weighted_sum(sparsify(**given), factors, base)
        factor = scale / divisor(factors, normalize=normalize)
        return total.mul_(factor).add_(base)
    merged = elect(
        _trimmed(**given),
        factors,
        merge_func=merge_func,
        sign_tie=sign_tie,
        majority=float(summary.get("signs", 0.0)),
    )
    return merged.mul_(scale).add_(base)


def _trimmed(
    *,
    ties_density: float | list[float],
    threshold_scope: str,
    keep_rule: str,
    summary: Mapping[str, Any],
    info: TensorInfo,
    **given: Any,
) -> list[Tensor]:
    return trimmed(
        sparsify(summary=summary, **given),
        each(ties_density, len(given["experts"])),
        threshold_scope=threshold_scope,
        keep_rule=keep_rule,
        summary=summary,
        name=info.name,
    )
