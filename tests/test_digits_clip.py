"""The conditions that make the embedded track worth something, measured. Minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import mtk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("bench")
    return mtk.bench(
        seeds=(0, 1, 2), results=folder / "results", cache=folder / "cache"
    )


@pytest.fixture(scope="module")
def rows(bench):
    return {row.name: row for row in bench.rows}


def test_everything_that_can_run_ran(bench) -> None:
    assert not bench.failures
    assert [skipped.method for skipped in bench.plan.skipped] == ["slerp"]


def test_merges_lie_between_the_base_and_the_experts(rows) -> None:
    static = [row for row in rows.values() if row.group == "static"]
    base, experts = rows["pretrained"].held_in, rows["experts"].held_in
    between = [row for row in static if base < row.held_in < experts]
    assert len(between) > 0.8 * len(static)


def test_the_best_method_beats_the_average_by_more_than_the_interval(rows) -> None:
    best = next(row for row in rows.values() if row.rank == 1)
    assert best.difference > 2 * best.difference_interval
    assert best.difference > rows["average"].held_in_interval


def test_the_random_control_is_below_every_real_merge(rows) -> None:
    control = rows["random deltas (average)"]
    for row in rows.values():
        if row.group in ("static", "per_task", "routed"):
            assert row.held_in - row.held_in_interval > control.held_in


def test_the_order_of_methods_is_stable_over_seeds(bench) -> None:
    assert bench.facts["stability_held_in"] > 0.8


def test_the_second_run_computes_nothing_and_says_the_same(
    bench, tmp_path_factory
) -> None:
    results = next(iter(bench.plan.todo)).path.parent.parent
    again = mtk.bench(
        seeds=(0, 1, 2), results=results, cache=results.parent / "cache", jobs=0
    )
    assert not again.plan.todo
    assert [row.tasks for row in again.rows] == [row.tasks for row in bench.rows]


def test_killed_in_the_middle_it_goes_on_and_leaves_no_worker(bench, tmp_path) -> None:
    """SIGKILL of the command alone: its workers end, and finished records count."""
    cache = next(iter(bench.plan.todo)).path.parents[2] / "cache"
    command = [
        sys.executable,
        "-m",
        "mtk_cli",
        "bench",
        "--track",
        "digits-clip",
        "--jobs",
        "2",
    ]
    names = ["average", "task_arithmetic", "iso_c", "dare", "ties", "smile"]
    command += [part for name in names for part in ("--method", name)]
    env = os.environ | {"MTK_CACHE": str(cache)}
    results = tmp_path / "mtk-results" / "digits-clip"
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    )
    while not list(results.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)
    kept = {path.name: path.stat().st_mtime_ns for path in results.glob("*.json")}
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=env, capture_output=True, check=True
    )
    rows = json.loads(done.stdout)["rows"]
    assert {row["name"] for row in rows} >= set(names)
    for name, stamp in kept.items():
        assert (results / name).stat().st_mtime_ns == stamp
    assert not list(results.glob(".*"))
