"""K-LoRA: which of two adapters a layer uses at a denoising step (arXiv:2502.18461).

    S_c, S_s = sums of the k largest |entries| of the two updates, k = r_c r_s
    scale    = alpha t / T + beta        ("s*": modulo alpha)
    content where S_c / gamma > S_s scale, style elsewhere

The result is a choice per layer and step, not a merged adapter. B A is taken without the
scale alpha / r, as in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from mtk_adapters_lora.adapter import LoraAdapter


def strength(adapter: LoraAdapter, module: str, count: int) -> float:
    """Sum of the ``count`` largest magnitudes of ``B A``."""
    a, b = adapter.factors(adapter.modules[module])
    entries = (b @ a).abs().flatten()
    return float(entries.topk(min(count, entries.numel())).values.sum())


def average_ratio(content: LoraAdapter, style: LoraAdapter) -> float:
    """Gamma: total magnitude of the content updates over that of the style updates."""
    totals = []
    for adapter in (content, style):
        parts = [_magnitude(*adapter.factors(m)) for m in adapter.modules.values()]
        totals.append(float(torch.stack(parts).sum()))
    if not totals[1]:
        raise CheckpointError(f"{style.label}: all updates are zero")
    return totals[0] / totals[1]


def _magnitude(a: Tensor, b: Tensor) -> Tensor:
    return (b @ a).abs().sum().double()


def choose(
    content: LoraAdapter,
    style: LoraAdapter,
    module: str,
    step: int,
    *,
    gamma: float,
    alpha: float = 1.5,
    beta: float = 0.5,
    total_steps: int = 28000,
    pattern: str = "s",
) -> int:
    """0 where the content adapter is used in this module at this step, 1 for the style."""
    count = content.modules[module].rank * style.modules[module].rank
    scale = alpha * (step % total_steps) / total_steps + beta
    if pattern == "s*":
        scale %= alpha
    return int(
        strength(content, module, count) / gamma
        <= strength(style, module, count) * scale
    )
