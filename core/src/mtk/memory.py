"""An upper estimate of the memory of a merge, from declarations and headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk import engine
from mtk._libc import KEPT
from mtk._scans import runs
from mtk._units import sliceable
from mtk.pipeline import AHEAD, default_workers

if TYPE_CHECKING:
    from mtk.declare import Scan
    from mtk.job import Job

# Intermediate values of a method, in tensors of the size it was given: so many for each
# source, and so many in all. float64 counts twice.
FOR_EACH, IN_ALL = 3, 8
# What a scan may count for one expert: a histogram of 65,536 bins, twice over.
COUNTED = 1 << 20
# Names, shapes and places of one tensor in one source, as Python keeps them.
BOOKKEEPING = 4 << 10


def expected_memory(job: Job, workers: int | None = None) -> int:
    """Bytes that a merge into a file takes at most, beside what is imported.

    The formula, with k sources (experts, base and statistics) of w bytes per entry and
    computing in W bytes::

        workers * (n * (k * (w + W) + (3 k + 8) * W) + v) + s + 32 MiB * (workers + 1)

    n: entries of one slice where the method may be given slices, else of the largest
    tensor; v: the largest tensor of each source that cannot be read in part, as stored
    and as computed; s: what scans have counted and nobody has added up yet, 1 MiB for
    each expert and waiting result; 32 MiB: freed memory that a thread keeps. A method
    of scope ``model`` holds all tensors of all sources, and as much again for each. Methods
    whose own state is larger, such as a decomposition's, can exceed this.
    """
    threads = default_workers() if workers is None else max(1, workers)
    sources = [*job.sources, *(f for files in job.statistics.values() for f in files)]
    sizes = [
        (torch.Size(info.shape).numel(), _width(info.dtype))
        for info in map(job.first.info, job.first.names())
        if job.merged(info)
    ]
    largest = max((count for count, _ in sizes), default=0)
    stored = max((width for _, width in sizes), default=4)
    wide = max(4, stored)
    kept = KEPT * (threads + 1) + BOOKKEEPING * len(sizes) * len(sources)
    if job.method.scope == "model":
        return 2 * len(sources) * wide * sum(count for count, _ in sizes) + kept
    running = _running(job)
    entries = largest
    if sliceable(job, running):
        size = engine.CHUNK * (engine.SCANNED if running else 1)
        entries = min(largest, size)
    values = FOR_EACH * len(sources) + IN_ALL
    each = entries * (len(sources) * (stored + wide) + values * wide)
    views = sum(not hasattr(source, "part") for source in sources)
    each += views * largest * (stored + wide)
    waiting = (AHEAD + threads + 1) if running else 0
    return threads * each + waiting * COUNTED * len(job.experts) + kept


def _width(dtype: str) -> int:
    found: torch.dtype = getattr(torch, dtype)
    return found.itemsize


def _running(job: Job) -> list[Scan]:
    """The scans that run for some tensor."""
    known = [job.params, *({**job.params, **own} for own in job.varied.values())]
    return [
        scan
        for scan in job.method.scans
        if any(runs(job, scan, params) for params in known)
    ]
