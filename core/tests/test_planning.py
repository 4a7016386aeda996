"""Records and the planner."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import mtk
from mtk import records
from mtk.planner import refusal, trials_of

if TYPE_CHECKING:
    from pathlib import Path


def method(**changes):
    return mtk.Method(**{"name": "m", "target": "a:b", "summary": "s"} | changes)


TRACK = mtk.Track(
    name="t", target="a:b", summary="", setting="", version="1",
    tasks=tuple(mtk.Task(name=str(i), held_in=True) for i in range(6)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (mtk.Needs(), None),
        (mtk.Needs(experts=(6, 6)), None),
        (mtk.Needs(experts=(2, 2)), "exactly 2"),
        (mtk.Needs(experts=(1, 4)), "at most 4"),
        (mtk.Needs(experts=(7, None)), "at least 7"),
        (mtk.Needs(checkpoints=("lora",)), "lora"),
        (mtk.Needs(split="test_time"), "test inputs"),
    ],
)
def test_refusals_come_from_declarations_alone(needs, says) -> None:
    reason = refusal(method(needs=needs), TRACK, "full")
    assert reason is None if says is None else says in reason


@pytest.mark.parametrize(
    ("output", "needs", "says"),
    [
        ("gaussian", mtk.Needs(statistics=("fisher", "gram")), None),
        ("gaussian", mtk.Needs(outputs=("categorical",)), "categorical outputs"),
        ("gaussian", mtk.Needs(outputs=("categorical", "gaussian")), None),
        ("none", mtk.Needs(), None),
        ("none", mtk.Needs(statistics=("gram",)), "no outputs"),
        ("none", mtk.Needs(outputs=("gaussian",)), "are none"),
    ],
)
def test_what_a_track_does_not_give_is_a_refusal(output, needs, says) -> None:
    reason = refusal(method(needs=needs), replace(TRACK, output=output), "lora")
    assert reason is None if says is None else says in reason


def test_trials_start_with_the_defaults_and_keep_to_the_budget() -> None:
    params = (
        mtk.Param("a", 0.5, grid=tuple(i / 10 for i in range(10))),
        mtk.Param("b", 1, grid=(1, 2, 3)),
    )
    grid = method(params=params)
    assert len(trials_of(grid, {}, 100)) == 30
    few = trials_of(grid, {}, 12)
    assert len(few) == 12
    assert few[0] == {"a": 0.5, "b": 1}
    assert few == trials_of(grid, {}, 12)
    fixed = trials_of(grid, {"a": 0.33}, 12)
    assert [point["a"] for point in fixed] == [0.33] * 3
    assert trials_of(method(), {}, 12) == [{}]


def identity(**changes):
    return {"method": "d:m", "track": "t", "seed": 0, "params": {}} | changes


def test_a_record_is_named_by_what_decides_it(tmp_path: Path) -> None:
    record = {"schema": records.SCHEMA, "identity": identity(), "x": 1}
    path = records.write(tmp_path, record)
    assert path == records.path_of(tmp_path, identity())
    assert records.read(path) == record
    assert list(path.parent.iterdir()) == [path]
    for changes in ({"seed": 1}, {"params": {"a": 1}}, {"method": "e:m"}):
        assert records.path_of(tmp_path, identity(**changes)) != path


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"schema": 999})])
def test_what_is_no_record_counts_as_absent(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    assert records.read(path) is None
    assert records.read(tmp_path / "absent.json") is None


def test_the_source_hash_follows_imports_within_the_package(
    tmp_path, monkeypatch
) -> None:
    package = tmp_path / "hashme"
    package.mkdir()
    files = {
        "__init__": "",
        "one": "from hashme import shared\n",
        "two": "from hashme.shared import x\n",
        "shared": "x = 1\n",
        "other": "y = 1\n",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {name: records.source_hash(f"hashme.{name}:f") for name in ("one", "two")}
    (package / "other.py").write_text("y = 2\n")
    assert records.source_hash("hashme.one:f") == before["one"]
    (package / "shared.py").write_text("x = 2\n")
    for name, old in before.items():
        assert records.source_hash(f"hashme.{name}:f") != old
    assert "hashme.one" not in sys.modules


def test_a_function_is_hashed_by_its_module() -> None:
    assert records.source_hash(method) == records.source_hash(
        test_a_function_is_hashed_by_its_module
    )
