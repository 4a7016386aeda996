"""The operations of :mod:`mtk_adapters_lora.combine` on one module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import CheckpointError, ParameterError
from mtk.randomness import stream
from mtk_adapters_lora.lowrank import LowRank, from_dense, from_factors, product_norm
from mtk_adapters_lora.result import Update
from mtk_adapters_lora.sparsify import BASE_TYPES, merge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtk_adapters_lora.sources import Source


def combine_module(
    name: str,
    sources: Sequence[Source],
    kind: str,
    *,
    rank: int | None,
    clamp: float | None,
    seed: int,
    **options: Any,
) -> Update:
    """Combine one module of the sources that have it; options are those of sparsify."""
    if kind in BASE_TYPES:
        low = _by_factor(name, sources, kind, seed, options)
    elif kind in ("cat", "svd", "ziplora"):
        low = concatenated(name, sources)
        if rank is not None and rank < low.a.shape[0]:
            low = from_factors(low.a, low.b, rank)
        elif kind == "svd":
            low = from_factors(low.a, low.b, low.a.shape[0])
    else:
        low = _by_delta(name, sources, kind, rank or 1, seed, options)
    if clamp is not None:
        low = _clamped(low, clamp)
    for factor in (low.a, low.b):
        if not bool(torch.isfinite(factor).all()):
            raise CheckpointError(f"{name!r}: the combination is not finite")
    first = sources[0].modules[name]
    return Update(
        a=low.a.contiguous(),
        b=low.b.contiguous(),
        kind=first.kind,
        kernel=first.kernel,
        error=low.error,
        norm=low.norm,
    )


def concatenated(name: str, sources: Sequence[Source]) -> LowRank:
    """The exact weighted sum, as one pair of factors."""
    rows, columns = [], []
    for source in sources:
        a, b = source.factors(name)
        rows.append(a * source.strength(name))
        columns.append(b)
    a, b = torch.cat(rows), torch.cat(columns, dim=1)
    return LowRank(a, b, 0.0, product_norm(a, b))


def _by_factor(
    name: str,
    sources: Sequence[Source],
    kind: str,
    seed: int,
    options: Mapping[str, Any],
) -> LowRank:
    strengths = [source.strength(name) for source in sources]
    roots = [math.sqrt(abs(strength)) for strength in strengths]
    signed = [math.copysign(c, g) for c, g in zip(roots, strengths, strict=True)]
    pairs = [source.factors(name) for source in sources]
    if len(sources) == 1:
        kind = "linear"
    merged = []
    for part, values in enumerate((signed, roots)):
        label = ("A", "B")[part]
        draw = _drawer(seed, name, label, sources, options["density"])
        tensors = [pair[part] for pair in pairs]
        merged.append(merge(kind, tensors, values, draw=draw, **options))
    return LowRank(merged[0], merged[1], 0.0, product_norm(merged[0], merged[1]))


def _by_delta(
    name: str,
    sources: Sequence[Source],
    kind: str,
    rank: int,
    seed: int,
    options: Mapping[str, Any],
) -> LowRank:
    deltas = []
    for source in sources:
        a, b = source.factors(name)
        deltas.append((b @ a) * source.modules[name].scale)
    draw = _drawer(seed, name, "delta", sources, options["density"])
    single = len(sources) == 1
    merged = merge(
        "linear" if single else kind.removesuffix("_svd"),
        deltas,
        [source.weight(name) for source in sources],
        draw=draw,
        **options,
    )
    return from_dense(merged, rank)


def _drawer(
    seed: int, name: str, part: str, sources: Sequence[Source], density: float
) -> Any:
    def draw(index: int, tensor: Tensor) -> Tensor:
        generator = stream(seed, sources[index].index, name, part)
        return torch.rand(tensor.shape, generator=generator) < density

    return draw


def _clamped(low: LowRank, quantile: float) -> LowRank:
    import numpy as np

    entries = torch.cat([low.a.flatten(), low.b.flatten()])
    edge = float(np.quantile(entries.numpy(), quantile))
    if edge < 0:
        raise ParameterError(
            f"clamp {quantile}: that quantile of the factors is below 0"
        )
    a, b = low.a.clamp(-edge, edge), low.b.clamp(-edge, edge)
    moved = product_norm(torch.cat([a, -low.a]), torch.cat([b, low.b], dim=1))
    return LowRank(a, b, math.hypot(low.error, moved), low.norm)


def cross_terms(updates: Mapping[str, Update], sources: Sequence[Source]) -> str:
    """How far merged factors are from the weighted sum of the updates."""
    distance = norm = 0.0
    for name, update in updates.items():
        exact = concatenated(name, [s for s in sources if name in s.modules])
        a, b = torch.cat([update.a, -exact.a]), torch.cat([update.b, exact.b], dim=1)
        distance, norm = distance + product_norm(a, b) ** 2, norm + exact.norm**2
    share = math.sqrt(distance / norm) if norm else 0.0
    return (
        f"merging factors gives an update {share:.3f} (relative) away from the weighted "
        "sum; cat is exact"
    )
