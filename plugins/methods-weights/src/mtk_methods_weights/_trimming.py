"""Keep the entries of largest magnitude: exact, in linear time, without sorting.

The bit pattern of a non-negative float32, read as an integer, has the order of the
numbers. So the n-th smallest magnitude of a whole model is found by two histograms: one
of the high 16 bits of all patterns, one of the low 15 bits of those in the bin that the
first one singles out. Neither needs more than one tensor at a time. Magnitudes of
float64 tensors are compared after rounding to float32: entries that differ by less
count as equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

LOW_BITS = 15  # of 31: histograms of 65,536 and 32,768 bins, which stay in the cache
LOW_BINS, HIGH_BINS = 1 << LOW_BITS, 1 << (31 - LOW_BITS)
PIECE = 1 << 22  # entries counted at a time: counting copies them to 64-bit integers


def patterns(delta: Tensor) -> Tensor:
    """Bit patterns of the float32 magnitudes, (n,), int32."""
    return delta.flatten().float().abs().view(torch.int32)


def rank(count: int, density: float, keep_rule: str) -> int:
    """Which smallest magnitude, counted from 1, is the smallest that is kept."""
    kept = int(count * density)
    return count - max(1, kept) + 1 if keep_rule == "exact" else max(1, count - kept)


def high_counts(deltas: Sequence[Tensor], *, density: float) -> dict[str, Tensor]:
    """First scan: how many entries have each pattern of high bits, (k, HIGH_BINS)."""
    if not 0 < density < 1:
        return {}
    bits = [patterns(delta) >> LOW_BITS for delta in deltas]
    return {"high": torch.stack([_histogram(b, HIGH_BINS) for b in bits])}


def low_counts(
    deltas: Sequence[Tensor],
    *,
    density: float,
    keep_rule: str,
    summary: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Second scan: the low bits of those in the decisive bin, (k, LOW_BINS)."""
    if not 0 < density < 1:
        return {}
    rows = []
    for delta, counts in zip(deltas, summary["high"], strict=True):
        wanted = rank(int(counts.sum()), density, keep_rule)
        place, _ = _locate(counts, wanted)
        bits = patterns(delta)
        inside = bits[bits >> LOW_BITS == place] & (LOW_BINS - 1)
        rows.append(_histogram(inside, LOW_BINS))
    return {"low": torch.stack(rows)}


def equal_counts(
    deltas: Sequence[Tensor], *, density: float, summary: Mapping[str, Any], name: str
) -> dict[str, Tensor]:
    """Third scan, rule exact: entries of this tensor at the very threshold, (k,)."""
    if not 0 < density < 1:
        return {}
    found = []
    for index, delta in enumerate(deltas):
        threshold, _ = _global_threshold(summary, index, density, "exact")
        found.append((patterns(delta) == threshold).sum())
    return {_equal_key(name): torch.stack(found)}


def trim(
    deltas: Sequence[Tensor],
    *,
    density: float,
    threshold_scope: str,
    keep_rule: str,
    summary: Mapping[str, Any],
    name: str,
) -> list[Tensor]:
    """Zero all but the share ``density`` of largest magnitude; 0 keeps none, 1 all."""
    if density >= 1:
        return list(deltas)
    if density <= 0:
        return [torch.zeros_like(delta) for delta in deltas]
    trimmed = []
    for index, delta in enumerate(deltas):
        bits = patterns(delta)
        if threshold_scope == "global":
            threshold, quota = _global_threshold(summary, index, density, keep_rule)
            quota -= _earlier(summary, index, name) if keep_rule == "exact" else 0
        else:
            threshold, quota = _own_threshold(bits, density, keep_rule)
        keep = bits >= threshold
        if (
            keep_rule == "exact"
        ):  # of equal entries, the first in order of name and place
            equal = bits == threshold
            keep = (bits > threshold) | (equal & (equal.cumsum(0) <= quota))
        trimmed.append(torch.where(keep.view(delta.shape), delta, 0.0))
    return trimmed


def _histogram(values: Tensor, bins: int) -> Tensor:
    counts = torch.zeros(bins, dtype=torch.int64)
    for piece in torch.split(values, PIECE):
        counts += torch.bincount(piece, minlength=bins)
    return counts


def _locate(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the ``wanted``-th smallest, and how many lie in bins below."""
    below = counts.cumsum(0)
    place = min(int(torch.searchsorted(below, wanted)), len(counts) - 1)
    return place, int(below[place - 1]) if place else 0


def _global_threshold(
    summary: Mapping[str, Any], index: int, density: float, keep_rule: str
) -> tuple[int, int]:
    """Pattern of the smallest kept magnitude, and how many equal to it are kept."""
    high, low = summary["high"][index], summary["low"][index]
    count = int(high.sum())
    wanted = rank(count, density, keep_rule)
    place, below = _locate(high, wanted)
    inner, inside = _locate(low, wanted - below)
    smaller, equal = below + inside, int(low[inner])
    quota = max(1, int(count * density)) - (count - smaller - equal)
    return place << LOW_BITS | inner, quota


def _own_threshold(bits: Tensor, density: float, keep_rule: str) -> tuple[int, int]:
    count = bits.numel()
    if not count:
        return 0, 0
    threshold = int(torch.kthvalue(bits, rank(count, density, keep_rule)).values)
    quota = max(1, int(count * density)) - int((bits > threshold).sum())
    return threshold, quota


def _equal_key(name: str) -> str:
    return f"equal {name}"


def _earlier(summary: Mapping[str, Any], index: int, name: str) -> int:
    """Entries at the threshold in the tensors that come before this one."""
    prefix = _equal_key("")
    return sum(
        int(counts[index])
        for key, counts in summary.items()
        if key.startswith(prefix) and key < _equal_key(name)
    )
