"""Fisher-weighted averaging with diagonal Fisher information.

Paper: Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022,
arXiv:2111.09832.

    c_i   = lambda_i / n_i,                n_i = L2 norm of F_i (model or tensor), or 1
    G_i   = max(F_i, floor)                or F_i + floor
    theta = sum_i c_i G_i theta_i / sum_i c_i G_i            per entry

theta_i: ``experts[i]``, F_i: ``fisher[i]``, lambda_i: ``weights[i]``. With
``favor_target`` only the first Fisher is floored. A tensor that lacks the statistic of
an expert, and any entry whose weights all vanish (possible with floor 0), takes the
plain weighted average sum_i lambda_i theta_i / sum_i lambda_i. The norm of a Fisher
that is zero throughout counts as 1: such an expert has no say beyond the floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk_methods_statistics._averaging import per_expert, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def scan_norms(*, fisher: Sequence[Tensor | None], **_: Any) -> dict[str, Tensor]:
    """Sum of squared Fisher values of each expert, for ``fisher_norm`` model."""
    return {"squares": torch.stack([_squares(values) for values in fisher])}  # (k,)


def merge(
    *,
    experts: list[Tensor],
    fisher: Sequence[Tensor | None],
    weights: list[float] | None,
    fisher_norm: str,
    floor: float,
    floor_mode: str,
    favor_target: bool,
    summary: Mapping[str, Any],
) -> Tensor:
    """Fisher-weighted mean of one tensor of any shape."""
    factors = per_expert("fisher", weights, len(experts))
    plain = weighted_mean(experts, factors)
    known = [values for values in fisher if values is not None]
    if len(known) < len(experts):
        return plain
    coefficients = _coefficients(factors, known, fisher_norm, summary)
    total, divisor = torch.zeros_like(plain), torch.zeros_like(plain)
    for index, (expert, values) in enumerate(zip(experts, known, strict=True)):
        if index == 0 or not favor_target:
            floored = values + floor if floor_mode == "add" else values.clamp_min(floor)
        else:
            floored = values
        weight = coefficients[index] * floored
        total += weight * expert
        divisor += weight
    empty = divisor == 0
    return torch.where(empty, plain, total / torch.where(empty, 1.0, divisor))


def _coefficients(
    factors: list[float], fisher: list[Tensor], norm: str, summary: Mapping[str, Any]
) -> list[float]:
    if norm == "none":
        return factors
    if norm == "model":
        squares = summary["squares"]
    else:
        squares = torch.stack([_squares(values) for values in fisher])
    norms = torch.where(squares > 0, squares.sqrt(), 1.0).tolist()
    # One common factor changes nothing; it keeps 1 / n_i within the range of float32.
    smallest = min(norms)
    return [factor * smallest / n for factor, n in zip(factors, norms, strict=True)]


def _squares(values: Tensor | None) -> Tensor:
    if values is None:
        return torch.zeros((), dtype=torch.float64)
    return values.double().square().sum()
