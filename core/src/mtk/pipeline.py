"""Work in threads, results in order; torch lets other threads run while it computes."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

# More threads than this wait for memory and for the lock of the output file.
MOST_WORKERS = 4
# Units handed out ahead of the oldest unfinished one: enough for a large tensor to be
# overtaken by small ones, few enough that waiting results of scans stay small.
AHEAD = 16


def default_workers() -> int:
    """One thread per processor this process may use, at most ``MOST_WORKERS``."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def ordered(
    units: Iterable[T], work: Callable[[T], R], workers: int | None = None
) -> Iterator[R]:
    """Yield ``work(unit)`` in the order of ``units``.

    Each thread computes with one thread of torch, so that results do not depend on
    ``workers``. Of several errors, the first in order is raised; no unit is started
    after it was seen.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[R]] = deque()
    count = max(1, default_workers() if workers is None else workers)
    pool = ThreadPoolExecutor(count, "mtk", torch.set_num_threads, (1,))
    try:
        for unit in units:
            waiting.append(pool.submit(work, unit))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
