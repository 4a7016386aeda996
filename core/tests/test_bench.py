"""The shared protocol on the toy track: plan, measure, record, continue."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

import mtk
from mtk import models
from mtk.errors import UsageError
from mtk.loading import Provided
from mtk.results import PerTask, Routed
from mtk.testing import toy_registry

if TYPE_CHECKING:
    from pathlib import Path

calls: list[float] = []


def add(*, experts, base, scale):
    calls.append(scale)
    return base + scale * sum(expert - base for expert in experts)


def mean(*, experts):
    return sum(experts) / len(experts)


def fail(*, experts):
    raise RuntimeError("boom")


def first(*, experts, fisher):
    return experts[0] if fisher[0] is None else experts[0] * 1


ADD = mtk.Method(
    name="add",
    target=add,
    summary="",
    needs=mtk.Needs(base=True),
    params=(mtk.Param("scale", 0.3, grid=(0.0, 0.3, 3.0)),),
)
MEAN = mtk.Method(name="mean", target=mean, summary="", reference=True)
FAIL = mtk.Method(name="fail", target=fail, summary="")
PAIR = mtk.Method(name="pair", target=mean, summary="", needs=mtk.Needs(experts=(2, 2)))
FIRST = mtk.Method(
    name="first",
    target=first,
    summary="",
    needs=mtk.Needs(statistics=("fisher",)),
    params=(
        mtk.Param(
            "estimator", "exact", choices=("exact", "empirical"), stage="statistic"
        ),
        mtk.Param("examples", 10, low=1, stage="statistic"),
    ),
)


def registry(*methods: mtk.Method):
    found = toy_registry(MEAN)
    found.methods += [Provided(method, found.methods[0].plugin) for method in methods]
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tmp_path: Path, cache: Path):
    def bench(*methods: mtk.Method, **changes):
        settings = {"track": "toy", "results": tmp_path / "results", "cache": cache}
        return mtk.bench(**settings | {"registry": registry(*methods)} | changes)

    return bench


def names(items) -> list[str]:
    return sorted(item.name for item in items)


CONTROLS = ["experts", "multitask", "pretrained", "random deltas (mean)"]


def test_every_table_has_the_baselines_and_the_control(run) -> None:
    bench = run(ADD)
    assert names(bench.rows) == sorted([*CONTROLS, "add", "mean"])
    rows = {row.name: row for row in bench.rows}
    assert rows["experts"].normalised == pytest.approx(1)
    assert rows["experts"].generalization is None
    assert rows["mean"].held_in > rows["random deltas (mean)"].held_in
    assert not bench.failures
    assert not bench.plan.skipped


def test_parameters_are_chosen_on_validation_within_the_budget(run) -> None:
    row = next(row for row in run(ADD).rows if row.name == "add")
    assert row.params == [{"scale": 0.3}]
    assert row.trials == 3
    bench = run(ADD, budget=1, methods=["add"])
    assert next(row for row in bench.rows if row.trials == 1 and row.name == "add")


def test_tuning_never_sees_test_items(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtk.testing._toy import ToyTrack

    asked: list[tuple[str, int]] = []
    data = ToyTrack.data

    def watch(self, task: str, split: str):
        asked.append((split, len(calls)))
        return data(self, task, split)

    monkeypatch.setattr(ToyTrack, "data", watch)
    calls.clear()
    run(ADD, methods=["add"])
    before_tuned = [split for split, done in asked if 0 < done < len(calls)]
    assert "test" not in before_tuned


def test_fixed_values_leave_the_grid_and_stand_beside_the_tuned_row(run) -> None:
    run(ADD)
    bench = run(ADD, methods=["add"], params={"scale": 0.1})
    assert names(bench.plan.todo) == ["add"]
    rows = [row for row in bench.rows if row.name == "add"]
    assert sorted(row.note for row in rows) == ["", "fixed scale=0.1"]
    assert [row.new for row in rows if row.note] == [True]
    for wrong in ({"scal": 1}, {"scale": "x"}):
        with pytest.raises(UsageError):
            run(ADD, methods=["add"], params=wrong)
    with pytest.raises(UsageError, match="--method"):
        run(ADD, params={"scale": 0.1})


def test_only_what_is_new_is_computed(run) -> None:
    assert len(run().plan.todo) == 5
    again = run(ADD)
    assert names(again.plan.todo) == ["add"]
    assert [row.name for row in again.rows if row.new] == ["add"]
    assert not run(ADD).plan.todo


def test_a_damaged_record_is_computed_again(run, tmp_path: Path) -> None:
    run()
    path = next((tmp_path / "results" / "toy").glob("*mean*"))
    path.write_text(path.read_text()[:100])
    assert len(run().plan.todo) == 1
    assert not run().plan.todo


def test_killed_between_two_methods_the_bench_goes_on(run) -> None:
    seen = []

    def stop(message: str, share: float | None) -> None:
        seen.append(message)
        if share and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ADD, report=stop)
    bench = run(ADD)
    assert 0 < len(bench.plan.todo) < 6
    assert len(bench.rows) == 6


def test_a_failing_method_does_not_stop_the_others(run) -> None:
    bench = run(FAIL, ADD)
    assert [failure.method for failure in bench.failures] == ["checked:fail"]
    assert "boom" in bench.failures[0].message
    assert len(bench.rows) == 6


def test_what_cannot_run_is_listed_with_its_reason(run) -> None:
    gone = mtk.Method(name="gone", target="no_such_package.m:f", summary="")
    bench = run(PAIR, gone, dry_run=True)
    reasons = {skipped.method: skipped.reason for skipped in bench.plan.skipped}
    assert reasons["pair"] == "takes exactly 2 experts, the track has 3"
    assert "no_such_package" in reasons["gone"]


def test_a_name_used_twice_is_listed_and_not_run(run) -> None:
    from dataclasses import replace

    found = registry(ADD)
    other = replace(found.methods[0].plugin, distribution="other")
    found.methods.append(Provided(ADD, other))
    bench = run(registry=found)
    assert {skipped.method for skipped in bench.plan.skipped} == {
        "checked:add",
        "other:add",
    }
    chosen = run(registry=found, methods=["other:add"])
    assert "other:add" in [row.qualified for row in chosen.rows]


def test_a_dry_run_writes_and_computes_nothing(run, tmp_path: Path) -> None:
    bench = run(ADD, dry_run=True, cache=tmp_path / "empty")
    assert len(bench.plan.todo) == 6
    assert not bench.rows
    assert not list(tmp_path.iterdir())


def test_seeds_train_their_own_experts_and_meet_in_one_row(run) -> None:
    bench = run(ADD, seeds=(0, 1))
    row = next(row for row in bench.rows if row.name == "add")
    assert row.seeds == [0, 1]
    assert len(row.params) == 2
    hashes = {
        record["identity"]["seed"]: record["identity"]["models"]
        for record in bench.records
        if record["name"] == "add"
    }
    assert hashes[0]["base"] == hashes[1]["base"]
    assert hashes[0]["experts"] != hashes[1]["experts"]


def test_two_runs_with_one_seed_give_the_same_scores(run, tmp_path: Path) -> None:
    one = run(ADD, results=tmp_path / "1")
    two = run(ADD, results=tmp_path / "2")
    for a, b in zip(one.rows, two.rows, strict=True):
        assert (a.name, a.tasks, a.params) == (b.name, b.tasks, b.params)


def test_records_hold_what_is_needed_to_believe_them(run, tmp_path: Path) -> None:
    run(ADD)
    path = next((tmp_path / "results" / "toy").glob("checked.add*"))
    record = json.loads(path.read_text())
    assert path.stem.endswith(record["key"])
    assert record["params"] == {"scale": 0.3}
    assert [trial["params"]["scale"] for trial in record["trials"]] == [0.3, 0.0, 3.0]
    assert record["identity"]["version"] == "0"
    assert record["identity"]["source"]
    assert len(record["identity"]["models"]["experts"]) == 3
    assert record["environment"]["torch"] == torch.__version__
    task = record["items"]["left"]
    assert record["scores"]["left"] == pytest.approx(sum(task) / len(task))


def test_statistics_are_computed_once_and_their_time_is_kept(
    run, tmp_path, cache
) -> None:
    one = run(FIRST, methods=["first"])
    row = next(row for row in one.rows if row.name == "first")
    assert row.statistics_seconds > 0
    assert len(list((cache / "statistics").glob("fisher-*.safetensors"))) == 3
    two = run(FIRST, methods=["first"], results=tmp_path / "other")
    again = next(row for row in two.rows if row.name == "first")
    assert again.statistics_seconds == row.statistics_seconds
    run(FIRST, methods=["first"], params={"estimator": "empirical"})
    assert len(list((cache / "statistics").glob("fisher-*.safetensors"))) == 6


def split(*, experts, base):
    return PerTask(base, [{"delta": expert - base} for expert in experts])


def join(*, shared, code, base):
    return shared + code["delta"]


def route_nothing(*, experts, base, info):
    return Routed(base, {"zero": torch.zeros(())} if info.role == "linear" else {})


def no_correction(*, x, parts):
    return parts["zero"]


def test_per_task_and_routed_results_are_scored_apart(run) -> None:
    needs = mtk.Needs(base=True)
    lossless = mtk.Method(
        name="lossless",
        target=split,
        decode=join,
        output="per_task",
        summary="",
        needs=needs,
    )
    nothing = mtk.Method(
        name="nothing",
        target=route_nothing,
        route=no_correction,
        output="routed",
        scope="tensor",
        summary="",
        needs=mtk.Needs(base=True, info=True),
    )
    rows = {row.name: row for row in run(lossless, nothing).rows}
    assert rows["lossless"].group == "per_task"
    assert rows["lossless"].held_in == pytest.approx(rows["experts"].held_in)
    assert rows["lossless"].generalization is None
    assert rows["lossless"].added_bytes > 0
    assert rows["nothing"].tasks == rows["pretrained"].tasks


def test_the_cache_is_trusted_only_while_the_files_are_as_they_were(
    run, tmp_path
) -> None:
    own = tmp_path / "cache"
    run(cache=own)
    track = registry().tracks[0].item
    found = models.find(own, track, 0, {"experts": 3})
    assert found
    base = own / "x"
    base = type(tmp_path)(found["paths"]["base"])
    base.write_bytes(base.read_bytes() + b" ")
    assert models.find(own, track, 0, {"experts": 3}) is None
    assert not run(cache=own).plan.todo  # made again, to the same bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"track": "toi"},
        {"methods": ["ad"]},
        {"options": {"expert": 3}},
        {"options": {"experts": "many"}},
        {"budget": 0},
        {"seeds": ()},
        {"seeds": (-1,)},
        {"methods": ["./absent.py"]},
    ],
)
def test_wrong_requests_are_refused_before_anything_runs(
    run, changes, tmp_path
) -> None:
    with pytest.raises(UsageError) as caught:
        run(ADD, **changes)
    assert len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "results").exists()


def test_results_must_be_a_folder(run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        run(results=file)


def test_results_that_cannot_be_written_are_refused_first(run) -> None:
    for place in ("/proc/nope/x", "/dev/null/x"):
        with pytest.raises(UsageError, match=r"cannot hold results|not a folder"):
            run(results=place)


def test_a_cache_that_cannot_be_written_is_named(run) -> None:
    with pytest.raises(UsageError, match="MTK_CACHE"):
        run(cache="/proc/nope")


def test_another_metric_under_the_same_name_makes_records_stale(run) -> None:
    run()
    assert not run().plan.todo
    changed = registry()
    changed.metrics = [
        Provided(replace(found.item, target=strict), found.plugin)
        for found in changed.metrics
    ]
    assert len(run(registry=changed).plan.todo) == 5


def strict(*, predictions, references):
    return [0.0 for _ in zip(predictions, references, strict=True)]
