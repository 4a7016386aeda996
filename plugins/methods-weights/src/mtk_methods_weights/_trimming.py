"""Keep the entries of largest magnitude: exact, in linear time, without sorting.

The bit pattern of a non-negative float32, read as an integer, has the order of the
numbers. So the n-th smallest magnitude of a whole model is found by two histograms: one
of the high 16 bits of all patterns, one of the low 15 bits of those in the bin that the
first one singles out. Neither needs more than a slice of one tensor at a time.
Magnitudes of float64 tensors are compared after rounding to float32: entries that differ
by less count as equal.

The sums of the two scans become ``thresholds`` (patterns) and ``quotas`` (how many of the
entries at the very threshold are kept, for ``keep_rule`` exact), one for each expert.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import hardshrink

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

LOW_BITS = 15  # of 31: histograms of 65,536 and 32,768 bins, which stay in the cache
LOW_BINS, HIGH_BINS = 1 << LOW_BITS, 1 << (31 - LOW_BITS)
# Entries looked at in one go, where a tensor comes as a whole.
PIECE = 1 << 18


def patterns(delta: Tensor) -> Tensor:
    """Bit patterns of the float32 magnitudes, (n,), int32."""
    return delta.flatten().float().abs().view(torch.int32)


def number(pattern: int) -> float:
    """The float32 with this bit pattern."""
    (value,) = struct.unpack("<f", struct.pack("<i", pattern))
    return float(value)


def rank(count: int, density: float, keep_rule: str) -> int:
    """Which smallest magnitude, counted from 1, is the smallest that is kept."""
    kept = int(count * density)
    return count - max(1, kept) + 1 if keep_rule == "exact" else max(1, count - kept)


def partial(densities: Iterable[float]) -> bool:
    """Whether some expert keeps a part of its entries, so that a threshold matters."""
    return any(0 < density < 1 for density in densities)


def high_counts(
    deltas: Iterable[Tensor], densities: Sequence[float]
) -> dict[str, Tensor]:
    """First scan: how many entries have each pattern of high bits, (k, HIGH_BINS)."""
    rows = []
    for delta, density in zip(deltas, densities, strict=True):
        if 0 < density < 1:
            bits = patterns(delta).bitwise_right_shift_(LOW_BITS)
            rows.append(torch.bincount(bits, minlength=HIGH_BINS))
        else:
            like = torch.zeros(HIGH_BINS, dtype=torch.int64, device=delta.device)
            rows.append(like)
    return {"high": torch.stack(rows)}


def located(
    summary: Mapping[str, Any], densities: Sequence[float], keep_rule: str
) -> dict[str, Any]:
    """The bin of each threshold, and the rank inside of it; or known thresholds."""
    if "place" in summary or "thresholds" in summary:
        return {k: summary[k] for k in _FOUND if k in summary}
    found: dict[str, Any] = {"place": [], "below": [], "count": []}
    for counts, density in zip(summary["high"], densities, strict=True):
        count = int(counts.sum())
        wanted = rank(count, density, keep_rule)
        place, below = _locate(counts, wanted) if count else (0, 0)
        for key, value in (("place", place), ("below", below), ("count", count)):
            found[key].append(value)
    return found


_FOUND = ("place", "below", "count", "thresholds", "quotas")


def low_counts(
    deltas: Iterable[Tensor],
    densities: Sequence[float],
    keep_rule: str,
    summary: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Second scan: the low bits of those in the decisive bin, (k, LOW_BINS)."""
    rows = []
    places = located(summary, densities, keep_rule).get("place")
    if places is None:
        return {}
    for delta, density, place in zip(deltas, densities, places, strict=True):
        if 0 < density < 1:
            inside = _inside(patterns(delta), place << LOW_BITS)
            rows.append(torch.bincount(inside, minlength=LOW_BINS))
        else:
            like = torch.zeros(LOW_BINS, dtype=torch.int64, device=delta.device)
            rows.append(like)
    return {"low": torch.stack(rows)}


def _inside(bits: Tensor, start: int) -> Tensor:
    """Low bits of the patterns from ``start`` to the end of its bin; changes ``bits``."""
    if bits.device.type != "cpu":
        return bits[bits >> LOW_BITS == start >> LOW_BITS] - start
    # Below the bin the difference wraps to a large number. numpy picks out the few that
    # are inside several times faster.
    offsets = bits.numpy().view(np.uint32)
    np.subtract(offsets, np.uint32(start), out=offsets)
    return torch.from_numpy(offsets[offsets < LOW_BINS].view(np.int32))


def thresholds(
    summary: Mapping[str, Any], densities: Sequence[float], keep_rule: str
) -> dict[str, list[int]]:
    """Pattern of each expert's smallest kept magnitude, and how many equal ones stay."""
    if "thresholds" in summary:
        return {"thresholds": summary["thresholds"], "quotas": summary["quotas"]}
    if not partial(densities):
        nothing = [0] * len(densities)
        return {"thresholds": nothing, "quotas": nothing}
    found = located(summary, densities, keep_rule)
    result: dict[str, list[int]] = {"thresholds": [], "quotas": []}
    for index, density in enumerate(densities):
        count, below = found["count"][index], found["below"][index]
        low = summary["low"][index]
        if not count:
            result["thresholds"].append(0)
            result["quotas"].append(0)
            continue
        inner, inside = _locate(low, rank(count, density, keep_rule) - below)
        smaller, equal = below + inside, int(low[inner])
        result["thresholds"].append(found["place"][index] << LOW_BITS | inner)
        kept = max(1, int(count * density))
        result["quotas"].append(kept - (count - smaller - equal))
    return result


def own_thresholds(
    deltas: Iterable[Tensor], densities: Sequence[float], keep_rule: str
) -> dict[str, list[int]]:
    """The same for one small tensor, which is given as a whole."""
    result: dict[str, list[int]] = {"thresholds": [], "quotas": []}
    for delta, density in zip(deltas, densities, strict=True):
        count, threshold, quota = delta.numel(), 0, 0
        if count and 0 < density < 1:
            bits = patterns(delta)
            wanted = rank(count, density, keep_rule)
            threshold = int(torch.kthvalue(bits, wanted).values)
            quota = max(1, int(count * density)) - int((bits > threshold).sum())
        result["thresholds"].append(threshold)
        result["quotas"].append(quota)
    return result


def equal_counts(
    deltas: Iterable[Tensor],
    densities: Sequence[float],
    summary: Mapping[str, Any],
    name: str,
) -> dict[str, Tensor]:
    """Third scan, rule exact: entries of this tensor at the very threshold, (k,)."""
    found = []
    limits = thresholds(summary, densities, "exact")["thresholds"]
    for delta, density, limit in zip(deltas, densities, limits, strict=True):
        total = 0
        for piece in delta.reshape(-1).split(PIECE) if 0 < density < 1 else ():
            total += int((patterns(piece) == limit).sum())
        found.append(total)
    return {_EQUAL + name: torch.tensor(found, device="cpu")}


_EQUAL = "equal "


def earlier(summary: Mapping[str, Any]) -> dict[str, list[int]]:
    """Entries at the threshold in all tensors that come before each one."""
    if "earlier" in summary:
        known: dict[str, list[int]] = summary["earlier"]
        return known
    result, total = dict[str, list[int]](), None
    for key in sorted(key for key in summary if key.startswith(_EQUAL)):
        counts = summary[key].tolist()
        total = total or [0] * len(counts)
        result[key.removeprefix(_EQUAL)] = total
        total = [a + b for a, b in zip(total, counts, strict=True)]
    return result


def trim(delta: Tensor, density: float, threshold: int) -> Tensor:
    """Zero what is below the threshold; density 0 keeps nothing, 1 all. Any slice."""
    if density <= 0:
        return torch.zeros_like(delta)
    if density >= 1 or threshold == 0:
        return delta
    if delta.dtype == torch.float32:
        # The patterns below the threshold are those up to the one before it.
        return hardshrink(delta, number(threshold - 1))
    bits = patterns(delta).view(delta.shape)
    return torch.where(bits >= threshold, delta, 0.0)


def trim_exactly(delta: Tensor, density: float, threshold: int, quota: int) -> Tensor:
    """Of the entries at the very threshold, keep the first ``quota``. A whole tensor."""
    if not 0 < density < 1:
        return trim(delta, density, threshold)
    flat = delta.reshape(-1)
    kept = torch.empty_like(flat)
    for piece, result in zip(flat.split(PIECE), kept.split(PIECE), strict=True):
        bits = patterns(piece)
        equal = bits == threshold
        keep = (bits > threshold) | (equal & (equal.cumsum(0) <= quota))
        result.copy_(torch.where(keep, piece, 0.0))
        quota -= int(equal.sum())
    return kept.view(delta.shape)


def trimmed(
    deltas: Iterable[Tensor],
    densities: Sequence[float],
    *,
    keep_rule: str,
    threshold_scope: str,
    summary: Mapping[str, Any],
    name: str,
) -> list[Tensor]:
    """Every expert's task vector, trimmed; a slice, or with ``exact`` a whole tensor."""
    found = thresholds(summary, densities, keep_rule)
    limits, quotas = found["thresholds"], found["quotas"]
    if keep_rule == "at_least":
        pairs = zip(deltas, densities, limits, strict=True)
        return [trim(delta, density, limit) for delta, density, limit in pairs]
    if threshold_scope == "global" and partial(densities):
        before = earlier(summary)[name]
        quotas = [quota - taken for quota, taken in zip(quotas, before, strict=True)]
    rows = zip(deltas, densities, limits, quotas, strict=True)
    return [trim_exactly(*row) for row in rows]


def _locate(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the ``wanted``-th smallest, and how many lie in bins below."""
    below = counts.cumsum(0)
    place = min(int(torch.searchsorted(below, wanted)), len(counts) - 1)
    return place, int(below[place - 1]) if place else 0
