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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import ParameterError, UsageError
from mtk_adapters_lora.operations import combine_module, cross_terms
from mtk_adapters_lora.result import NewAdapter
from mtk_adapters_lora.sources import (
    Source,
    check_sources,
    open_sources,
    other_bases,
)
from mtk_adapters_lora.sparsify import BASE_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk_adapters_lora.adapter import LoraAdapter

    Weight = float | Mapping[str, float]
    Report = Callable[[str, float | None], None]

COMBINATIONS = (
    "cat", *BASE_TYPES, "svd", *(f"{t}_svd" for t in BASE_TYPES if t != "linear"), "ziplora",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A combination as it was asked for, checked; no factor has been read.

    Args:
        sources: the adapters, under common names.
        kind: one of ``COMBINATIONS``.
        rank: at most this many columns are kept; None for all.
        shared: fields of the result that all sources agree on.
        settings: density, sign_method, clamp and seed.
    """

    sources: Sequence[Source]
    kind: str
    rank: int | None
    shared: Mapping[str, Any]
    settings: Mapping[str, Any]

    def modules(self) -> dict[str, list[Source]]:
        """Module -> the sources that have it, in the order of the names."""
        names = sorted({name for source in self.sources for name in source.modules})
        return {name: [s for s in self.sources if name in s.modules] for name in names}

    def rank_of(self, name: str, having: Sequence[Source]) -> int:
        """The rank that a module of the result will have."""
        ranks = [source.modules[name].rank for source in having]
        if self.kind in BASE_TYPES:
            return ranks[0]
        module, total = having[0].modules[name], sum(ranks)
        stacked = self.kind in ("cat", "ziplora", "svd")
        if self.rank is None or (stacked and self.kind != "svd" and self.rank >= total):
            return total
        most = min(self.rank, total) if stacked else self.rank
        return min(most, module.d_in, module.d_out)

    def describe(self) -> dict[str, Any]:
        """What the result will be, from headers only."""
        size, ranks = 0, set()
        for name, having in self.modules().items():
            module, rank = having[0].modules[name], self.rank_of(name, having)
            size += rank * (module.d_in + module.d_out)
            ranks.add(rank)
        return {
            "combination": self.kind,
            "adapters": [source.adapter.label for source in self.sources],
            "weights": [source.given for source in self.sources],
            "format": self.shared["file_format"],
            "modules": len(self.modules()),
            "ranks": sorted(ranks),
            "numbers": size,
        }

    def run(self, report: Report | None = None) -> NewAdapter:
        """Combine module by module."""
        updates, modules = {}, self.modules()
        for done, (name, having) in enumerate(modules.items()):
            if report is not None:
                report(f"combining {name}", done / len(modules))
            updates[name] = combine_module(
                name, having, self.kind, rank=self.rank, **self.settings
            )
        notes = other_bases(self.sources)
        if self.kind in BASE_TYPES and len(self.sources) > 1:
            notes.append(cross_terms(updates, self.sources))
        made = {
            "combination": self.kind,
            "adapters": [source.provenance() for source in self.sources],
            "rank": self.rank,
            **self.settings,
        }
        return NewAdapter(
            updates=updates,
            notes=notes,
            provenance=made,
            inputs=[file for source in self.sources for file in source.adapter.files],
            **self.shared,
        )


def combine(
    adapters: Sequence[LoraAdapter | Path | str],
    weights: Sequence[Weight] | None = None,
    combination: str = "cat",
    **settings: Any,
) -> NewAdapter:
    """Combine adapters of one base into one adapter; arguments as for :func:`prepare`.

    Returns:
        The new adapter; ``relative_error`` is what truncation lost.
    """
    return prepare(adapters, weights, combination, **settings).run()


def prepare(
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
    component: str | None = None,
) -> Combination:
    """Open and check everything that a combination needs; read no factor.

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
        component: only the parts of the adapters for this component of a pipeline.
    """
    if combination not in COMBINATIONS:
        raise ParameterError(
            f"no combination {combination!r}\nThere are {', '.join(COMBINATIONS)}"
        )
    _check_numbers(rank, density, sign_method, clamp, combination)
    if column_scales is None and combination == "ziplora":
        raise ParameterError("ziplora needs column_scales, which are given from Python")
    if column_scales is not None and combination != "ziplora":
        raise ParameterError("column_scales belong to combination='ziplora'")
    sources = open_sources(adapters, weights, base, column_scales, component)
    shared = check_sources(sources, placed=base is not None)
    if combination in BASE_TYPES:
        _check_ranks(sources, combination)
    if rank is None and combination.endswith("svd"):
        rank = max(m.rank for source in sources for m in source.modules.values())
    return Combination(
        sources=sources,
        kind=combination,
        rank=rank,
        shared=shared,
        settings={
            "density": density,
            "sign_method": sign_method,
            "clamp": clamp,
            "seed": seed,
        },
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


def _check_ranks(sources: Sequence[Source], kind: str) -> None:
    for name in sorted({name for source in sources for name in source.modules}):
        ranks = {s.modules[name].rank for s in sources if name in s.modules}
        if len(ranks) > 1:
            raise UsageError(
                f"{kind} needs equal ranks; {name!r} has "
                f"{', '.join(map(str, sorted(ranks)))}\n"
                f"Use cat, or {'svd' if kind == 'linear' else kind + '_svd'}"
            )
