"""What a merge will cost, from declarations and headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.pipeline import default_workers
from mtk.shards import size_of

if TYPE_CHECKING:
    from mtk.job import Job

# Input bytes that one thread takes per second and pass; the slower half of what was
# measured on one core of a shared server (benchmarks/README.md).
BYTES_PER_SECOND = 4e8


def expected_bytes(job: Job) -> int:
    """Bytes of inputs that all passes read, if every scan runs."""
    sources = [
        *job.experts,
        *([job.base] if job.base and job.method.needs.base else []),
    ]
    merged = [name for name in job.first.names() if job.merged(job.first.info(name))]
    once = sum(size_of(source.info(name)) for source in sources for name in merged)
    scans = sum(
        all(job.params[name] in values for name, values in scan.when.items())
        for scan in job.method.scans
    )
    copied = sum(
        size_of(job.first.info(name))
        for name in job.first.names()
        if not job.merged(job.first.info(name))
    )
    return once * (1 + scans) + copied


def expected_seconds(job: Job, workers: int | None = None) -> float:
    """A rough time from a warm cache, without start-up."""
    threads = default_workers() if workers is None else workers
    return expected_bytes(job) / BYTES_PER_SECOND / threads
