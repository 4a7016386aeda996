"""The task vectors of AdaMerging++: trimmed, and cleared of disagreeing signs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def agree(deltas: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Trim each expert over the whole model, then zero what opposes the elected sign.

    An expert keeps the share ``density`` of its entries of largest magnitude: all that
    are at least as large as the k-th smallest, k = n - int(n * density). The elected
    sign is that of the sum; zero sums take the majority of all signs, or negative.

    Args:
        deltas: tensor name -> task vectors of the experts, (k, n).
        density: share kept; 1 trims nothing, 0 leaves nothing.
    """
    names = sorted(deltas)
    count = len(next(iter(deltas.values())))
    thresholds = [
        _threshold([deltas[n][i] for n in names], density) for i in range(count)
    ]
    trimmed, signs = {}, 0.0
    for name in names:
        rows = [
            torch.where(row.abs() >= smallest, row, 0.0)
            for row, smallest in zip(deltas[name], thresholds, strict=True)
        ]
        trimmed[name] = torch.stack(rows)
        signs += float(trimmed[name].sum(0).sign().sum(dtype=torch.float64))
    return {name: _clear(trimmed[name], tie_positive=signs > 0) for name in names}


def _threshold(parts: list[Tensor], density: float) -> float:
    magnitudes = torch.cat([part.abs() for part in parts])
    n = magnitudes.numel()
    if density >= 1 or not n:
        return 0.0
    if density <= 0:
        return float("inf")
    return float(torch.kthvalue(magnitudes, max(1, n - int(n * density))).values)


def _clear(rows: Tensor, *, tie_positive: bool) -> Tensor:
    total = rows.sum(0)
    positive = total >= 0 if tie_positive else total > 0
    return torch.where(torch.where(positive, rows > 0, rows < 0), rows, 0.0)
