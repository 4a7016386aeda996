"""Keep the entries of largest magnitude: exact, in linear time, without sorting.

The bit pattern of a non-negative float32, read as an integer, has the order of the
numbers. So the n-th smallest magnitude of a whole model is found by two histograms: one
of the high 16 bits of all patterns, one of the low 15 bits of those in the bin that the
first one singles out. Neither needs more than one tensor at a time. Magnitudes of
float64 tensors are compared after rounding to float32: entries that differ by less
count as equal.

Everything runs over pieces of tensors, whose differences are made when they are looked
at: temporary tensors as large as the model's cost more than the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    Deltas = Sequence[Tensor | "Difference"]

LOW_BITS = 15  # of 31: histograms of 65,536 and 32,768 bins, which stay in the cache
LOW_BINS, HIGH_BINS = 1 << LOW_BITS, 1 << (31 - LOW_BITS)
# Entries trimmed at a time, which stay in the second-level cache; and counted at a time,
# eight for each bin, so that adding up the bins costs little beside.
PIECE, COUNTED = 1 << 16, 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """``expert - base``, computed where it is looked at."""

    expert: Tensor
    base: Tensor

    def numel(self) -> int:
        """Number of entries."""
        return self.expert.numel()

    def piece(self, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat."""
        return self.expert.reshape(-1)[start:end] - self.base.reshape(-1)[start:end]


def differences(experts: Sequence[Tensor], base: Tensor) -> list[Difference]:
    """Task vectors that take no memory."""
    return [Difference(expert.contiguous(), base.contiguous()) for expert in experts]


def _piece(delta: Tensor | Difference, start: int, end: int) -> Tensor:
    if isinstance(delta, Difference):
        return delta.piece(start, end)
    return delta.reshape(-1)[start:end]


def steps(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Bounds of pieces."""
    for start in range(0, count, size):
        yield start, min(start + size, count)


def patterns(delta: Tensor) -> Tensor:
    """Bit patterns of the float32 magnitudes, (n,), int32."""
    return delta.flatten().float().abs().view(torch.int32)


def rank(count: int, density: float, keep_rule: str) -> int:
    """Which smallest magnitude, counted from 1, is the smallest that is kept."""
    kept = int(count * density)
    return count - max(1, kept) + 1 if keep_rule == "exact" else max(1, count - kept)


def high_counts(deltas: Deltas, *, density: float) -> dict[str, Tensor]:
    """First scan: how many entries have each pattern of high bits, (k, HIGH_BINS)."""
    if not 0 < density < 1:
        return {}
    return {"high": torch.stack([_high(delta) for delta in deltas])}


def low_counts(
    deltas: Deltas,
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
        rows.append(_low(delta, _locate(counts, wanted)[0]))
    return {"low": torch.stack(rows)}


def equal_counts(
    deltas: Deltas, *, density: float, summary: Mapping[str, Any], name: str
) -> dict[str, Tensor]:
    """Third scan, rule exact: entries of this tensor at the very threshold, (k,)."""
    if not 0 < density < 1:
        return {}
    found = []
    for index, delta in enumerate(deltas):
        threshold, _ = _threshold(
            summary["high"][index], summary["low"][index], density, "exact"
        )
        total = 0
        for start, end in steps(delta.numel(), PIECE):
            total += int((patterns(_piece(delta, start, end)) == threshold).sum())
        found.append(total)
    return {_equal_key(name): torch.tensor(found)}


def trim(deltas: Sequence[Tensor], **rule: Any) -> list[Tensor]:
    """The trimmed tensors as wholes; see :func:`trimmed`."""
    whole = [torch.empty_like(delta).reshape(-1) for delta in deltas]
    for start, end, kept in trimmed(deltas, **rule):
        for result, piece in zip(whole, kept, strict=True):
            result[start:end] = piece
    return [
        result.view(delta.shape) for result, delta in zip(whole, deltas, strict=True)
    ]


def trimmed(
    deltas: Deltas,
    *,
    density: float,
    threshold_scope: str,
    keep_rule: str,
    summary: Mapping[str, Any],
    name: str,
) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Zero all but the share ``density`` of largest magnitude; 0 keeps none, 1 all.

    Yields the bounds of each piece, in order, and the piece of every expert.
    """
    thresholds, quotas = [0] * len(deltas), [0] * len(deltas)
    for index, delta in enumerate(deltas if 0 < density < 1 else ()):
        if threshold_scope == "global":
            high, low = summary["high"][index], summary["low"][index]
            thresholds[index], quota = _threshold(high, low, density, keep_rule)
            quota -= _earlier(summary, index, name) if keep_rule == "exact" else 0
        else:
            thresholds[index], quota = _own_threshold(delta, density, keep_rule)
        quotas[index] = quota
    for start, end in steps(deltas[0].numel(), PIECE):
        kept = []
        for index, delta in enumerate(deltas):
            piece = _piece(delta, start, end)
            if density <= 0:
                piece = torch.zeros_like(piece)
            elif density < 1 and keep_rule == "exact":
                piece, used = _cut_exactly(piece, thresholds[index], quotas[index])
                quotas[index] -= used
            elif density < 1:
                piece = _cut(piece, thresholds[index])
            kept.append(piece)
        yield start, end, kept


def _cut(piece: Tensor, threshold: int) -> Tensor:
    """Zero what is below the threshold.

    A sign bit spread over the number is a mask; this is many times faster than a choice
    by a truth value for each entry.
    """
    bits = patterns(piece)
    if piece.dtype != torch.float32:
        return torch.where(bits >= threshold, piece, 0.0)
    mask = (threshold - 1 - bits) >> 31
    return (piece.view(torch.int32) & mask).view(torch.float32)


def _cut_exactly(piece: Tensor, threshold: int, quota: int) -> tuple[Tensor, int]:
    """Of equal entries keep the first ``quota``; also how many there are."""
    bits = patterns(piece)
    equal = bits == threshold
    keep = (bits > threshold) | (equal & (equal.cumsum(0) <= quota))
    return torch.where(keep, piece, 0.0), int(equal.sum())


def _high(delta: Tensor | Difference) -> Tensor:
    counts = torch.zeros(HIGH_BINS, dtype=torch.int64)
    for start, end in steps(delta.numel(), COUNTED):
        bits = patterns(_piece(delta, start, end)) >> LOW_BITS
        found = torch.bincount(bits)
        counts[: len(found)] += found
    return counts


def _low(delta: Tensor | Difference, place: int) -> Tensor:
    counts = torch.zeros(LOW_BINS, dtype=torch.int64)
    for start, end in steps(delta.numel(), COUNTED):
        bits = patterns(_piece(delta, start, end))
        inside = bits[bits >> LOW_BITS == place] & (LOW_BINS - 1)
        counts += torch.bincount(inside, minlength=LOW_BINS)
    return counts


def _locate(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the ``wanted``-th smallest, and how many lie in bins below."""
    below = counts.cumsum(0)
    place = min(int(torch.searchsorted(below, wanted)), len(counts) - 1)
    return place, int(below[place - 1]) if place else 0


def _threshold(
    high: Tensor, low: Tensor, density: float, keep_rule: str
) -> tuple[int, int]:
    """Pattern of the smallest kept magnitude, and how many equal to it are kept."""
    count = int(high.sum())
    wanted = rank(count, density, keep_rule)
    place, below = _locate(high, wanted)
    inner, inside = _locate(low, wanted - below)
    smaller, equal = below + inside, int(low[inner])
    quota = max(1, int(count * density)) - (count - smaller - equal)
    return place << LOW_BITS | inner, quota


def _own_threshold(
    delta: Tensor | Difference, density: float, keep_rule: str
) -> tuple[int, int]:
    count = delta.numel()
    if not count:
        return 0, 0
    wanted = rank(count, density, keep_rule)
    if count > HIGH_BINS:
        high = _high(delta)
        return _threshold(
            high, _low(delta, _locate(high, wanted)[0]), density, keep_rule
        )
    bits = patterns(_piece(delta, 0, count))
    threshold = int(torch.kthvalue(bits, wanted).values)
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
