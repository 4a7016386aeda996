# ruff: noqa: INP001, S603  a script that runs the command it names
"""Time and memory of ``mtk bench`` with an empty cache, and again with a full one.

    python benchmarks/first_bench.py [-- ARGUMENTS OF MTK BENCH]

Runs the ``mtk`` beside this Python twice in a temporary folder, and samples the memory of
all its processes together (proportional set size, so that shared pages count once) five
times a second. Needs Linux.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MTK = Path(sys.executable).with_name("mtk")


def main() -> None:
    """Run twice and print both."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    with tempfile.TemporaryDirectory(prefix="mtk-bench-") as work:
        environment = {
            **os.environ,
            "MTK_CACHE": f"{work}/cache",
            "OMP_NUM_THREADS": "1",
        }
        command = [str(MTK), "bench", "--quiet", *arguments]
        for name in ("first", "second"):
            seconds, peak, status = watch(command, work, environment)
            print(
                f"{name} run: {seconds:.1f} s, peak {peak / 1e9:.2f} GB, exit {status}"
            )


def watch(
    command: list[str], folder: str, environment: dict[str, str]
) -> tuple[float, int, int]:
    """Seconds, most bytes of all processes at one time, exit status."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL
    ) as child:
        while child.poll() is None:
            peak = max(peak, sum(map(memory, tree(child.pid))))
            time.sleep(0.2)
    return time.perf_counter() - started, peak, child.returncode


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                fields = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended
                continue
            parents.setdefault(int(fields[1]), []).append(int(place.name))
    found, todo = [], [root]
    while todo:
        process = todo.pop()
        found.append(process)
        todo += parents.get(process, [])
    return found


def memory(process: int) -> int:
    """Proportional set size in bytes; 0 for one that has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), "0 0")
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
