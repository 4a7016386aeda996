"""Combining several adapters into one adapter.

Notation: w_i weights, s_i scales, Delta_i = s_i B_i A_i. The new scale is 1.

- ``cat``: A = rows [w_i s_i A_i], B = columns [B_i]; exactly sum w_i Delta_i. With a
  ``rank``, the nearest adapter of that rank (as ``svd``).
- ``linear``, ``magnitude_prune``, ``ties``, ``dare_linear``, ``dare_ties``: A and B are
  merged apart with weights sign(w_i s_i) c_i and c_i, c_i = sqrt(|w_i s_i|). Equal ranks;
  the product has cross terms B_i A_j between unrelated adapters.
- ``svd`` and ``*_svd``: the same operations on the Delta_i, cut back to a rank.
- ``ziplora``: sum w_i Delta_i diag(m_i) with given column scales m_i, arXiv:2311.13600.

Sources: PEFT's add_weighted_adapter; LoRA Soups, arXiv:2410.13025 (weights per module).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import CheckpointError, ParameterError, UsageError
from mtk.randomness import stream
from mtk_adapters_lora.lowrank import LowRank, from_dense, from_factors, product_norm
from mtk_adapters_lora.result import NewAdapter, Update
from mtk_adapters_lora.sources import Source, check_sources, open_sources
from mtk_adapters_lora.sparsify import BASE_TYPES, merge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk_adapters_lora.adapter import LoraAdapter

    Weight = float | Mapping[str, float]

COMBINATIONS = (
    "cat", *BASE_TYPES, "svd", *(f"{t}_svd" for t in BASE_TYPES if t != "linear"), "ziplora",
)  # fmt: skip


def combine(
    adapters: Sequence[LoraAdapter | Path | str],
    weights: Sequence[Weight] | None = None,
    combination: str = "cat",
    *,
    rank: int | None = None,
    density: float = 1.0,
    sign_method: str = "total",
    clamp: float | None = None,
    seed: int = 0,
    column_scales: Sequence[Mapping[str, Tensor]] | None = None,
    base: Checkpoint | None = None,
) -> NewAdapter:
    """Combine adapters of one base into one adapter.

    Args:
        adapters: paths or opened adapters.
        weights: one number per adapter, or module -> number; all 1 by default.
        combination: one of ``COMBINATIONS``.
        rank: the rank of the result (cat, ziplora: uncut by default; svd types: the
            largest rank of the inputs by default).
        density: part of the entries that is kept (ties, dare, magnitude_prune).
        sign_method: ``total`` or ``frequency``, for ties.
        clamp: svd types only: quantile of all entries of A and B to which both are cut.
        seed: of the dare types.
        column_scales: ziplora only: per adapter, module -> (d_in,).
        base: the model they belong to. With it, names and shapes are checked against
            the base, and adapters of different formats can be combined.

    Returns:
        The new adapter; ``relative_error`` is what truncation lost.
    """
    if combination not in COMBINATIONS:
        raise ParameterError(
            f"no combination {combination!r}\nThere are {', '.join(COMBINATIONS)}"
        )
    _check_numbers(rank, density, sign_method, clamp, combination)
    if (column_scales is not None) != (combination == "ziplora"):
        raise ParameterError("column_scales belong to combination='ziplora'")
    sources = open_sources(adapters, weights, base, column_scales)
    shared = check_sources(sources)
    cut = rank
    if rank is None and combination.endswith("svd"):
        cut = max(m.rank for source in sources for m in source.modules.values())
    updates, notes = {}, []
    for name in sorted({name for source in sources for name in source.modules}):
        having = [source for source in sources if name in source.modules]
        options = {"density": density, "sign_method": sign_method}
        updates[name] = _combine_module(
            name, having, combination, cut, clamp, seed, options
        )
    if combination in BASE_TYPES and len(sources) > 1:
        notes.append(_cross_terms(updates, sources))
    return NewAdapter(
        updates=updates,
        notes=notes,
        provenance={
            "combination": combination,
            "adapters": [source.provenance() for source in sources],
            "rank": rank,
            "density": density,
            "sign_method": sign_method,
            "clamp": clamp,
            "seed": seed,
        },
        **shared,
    )


def _check_numbers(
    rank: int | None, density: float, sign_method: str, clamp: float | None, kind: str
) -> None:
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ParameterError(f"rank is {rank!r}; it is a whole number of at least 1")
    if rank is not None and kind in BASE_TYPES:
        raise ParameterError(
            f"{kind} keeps the rank of its inputs; give no rank, or use an svd type"
        )
    if not 0 < density <= 1:
        raise ParameterError(f"density is {density}; it is above 0 and at most 1")
    if sign_method not in ("total", "frequency"):
        raise ParameterError(f"sign_method is {sign_method!r}: total or frequency")
    if clamp is not None and (not 0 < clamp <= 1 or not kind.endswith("svd")):
        raise ParameterError(
            f"clamp is {clamp}; it is a quantile in (0, 1] and belongs to svd types"
        )


def _combine_module(
    name: str,
    sources: Sequence[Source],
    kind: str,
    rank: int | None,
    clamp: float | None,
    seed: int,
    options: Mapping[str, Any],
) -> Update:
    if kind in BASE_TYPES:
        low = _by_factor(name, sources, kind, seed, options)
    elif kind in ("cat", "svd", "ziplora"):
        low = _concatenated(name, sources)
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


def _concatenated(name: str, sources: Sequence[Source]) -> LowRank:
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
    ranks = {source.modules[name].rank for source in sources}
    if len(ranks) > 1:
        raise UsageError(
            f"{kind} needs equal ranks; {name!r} has {', '.join(map(str, sorted(ranks)))}\n"
            f"Use cat, or {'svd' if kind == 'linear' else kind + '_svd'}"
        )
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


def _cross_terms(updates: Mapping[str, Update], sources: Sequence[Source]) -> str:
    """How far merged factors are from the weighted sum of the updates."""
    distance = norm = 0.0
    for name, update in updates.items():
        exact = _concatenated(name, [s for s in sources if name in s.modules])
        a, b = torch.cat([update.a, -exact.a]), torch.cat([update.b, exact.b], dim=1)
        distance, norm = distance + product_norm(a, b) ** 2, norm + exact.norm**2
    share = math.sqrt(distance / norm) if norm else 0.0
    return (
        f"merging factors gives an update {share:.3f} (relative) away from the weighted "
        "sum; cat is exact"
    )
