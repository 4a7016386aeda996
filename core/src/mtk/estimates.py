"""What a merge will cost, from declarations and headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk._scans import runs
from mtk.job import holders
from mtk.pipeline import default_workers
from mtk.shards import size_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtk.job import Job

# Input bytes that one thread takes per second and pass; the slower half of what was
# measured on one core of a shared server (benchmarks/README.md).
BYTES_PER_SECOND = 4e8


def expected_bytes(job: Job) -> int:
    """Bytes of inputs that all passes read, as the engine counts them for ``progress``.

    Tied tensors are read once; only reading them shows that they are, so that here each
    counts. Tensors of other jobs of the same recipe do not count.
    """
    names = job.first.names()
    mine = names if job.chosen is None else [n for n in names if n in job.chosen]
    known = {
        name: [set(file.names()) for file in files]
        for name, files in job.statistics.items()
    }
    total = 0
    for name in mine:
        info = job.first.info(name)
        if job.merged(info):
            once = sum(_sizes(job, name, known))
            total += once * _passes(job, name)
        elif info.role == "buffer" and job.method.scope != "model":  # compared
            total += sum(size_of(source.info(name)) for source in holders(job, name))
        else:
            total += size_of(info)
    return total


def _sizes(job: Job, name: str, known: Mapping[str, Sequence[set[str]]]) -> list[int]:
    """Bytes of what a method is given of one tensor."""
    sources = [*job.experts]
    if job.base is not None and job.method.needs.base:
        sources.append(job.base)
    if job.method.scope != "model":
        for statistic in job.method.needs.statistics:
            pairs = zip(job.statistics[statistic], known[statistic], strict=True)
            sources += [file for file, names in pairs if name in names]
    return [size_of(source.info(name)) for source in sources]


def _passes(job: Job, name: str) -> int:
    """How often a tensor is read: by scans of the model, by its own, and at the end."""
    count, own = 1, 0  # own: scans of this tensor that every later pass repeats
    for scan in job.method.scans if job.method.scope == "two-pass" else ():
        if not scan.each and runs(job, scan, job.params):
            count += 1 + own
        elif scan.each and runs(job, scan, job.params_of(name)):
            count += scan.finish is not None
            own += scan.finish is None
    return count + own


def expected_seconds(job: Job, workers: int | None = None) -> float:
    """A rough time from a warm cache, without start-up."""
    threads = default_workers() if workers is None else workers
    return expected_bytes(job) / BYTES_PER_SECOND / threads
