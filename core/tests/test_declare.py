from __future__ import annotations

import subprocess
import sys

import pytest

import mtk
from mtk.errors import DeclarationError


def method(**changes: object) -> mtk.Method:
    return mtk.Method(**{"name": "m", "target": "a:b", "summary": "s"} | changes)


def test_importing_mtk_leaves_torch_unimported() -> None:
    code = "import mtk, sys; mtk.load(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Not-Snake"},
        {"scope": "two-pass"},
        {"scans": (mtk.Scan("a:b"),)},
        {"output": "per_task"},
        {"output": "routed"},
        {"decode": "a:b"},
        {"output": "strange"},
        {"stochastic": True},
        {"stochastic": True, "params": (mtk.Param("seed", 0),)},
        {"params": (mtk.Param("seed", 0),)},
        {"params": (mtk.Param("base", 0),)},
        {"params": (mtk.Param("a", 0), mtk.Param("a", 1))},
        {"needs": mtk.Needs(data="unlabelled")},
        {"needs": mtk.Needs(statistics=("gram",)), "scope": "model"},
    ],
)
def test_contradictions_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DeclarationError):
        method(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": (0, 1)},
        {"experts": (3, 2)},
        {"statistics": ("nope",)},
        {"split": "test"},
        {"outputs": ("pictures",)},
    ],
)
def test_impossible_needs_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DeclarationError):
        mtk.Needs(**changes)


def test_a_default_or_grid_point_outside_the_range_is_refused() -> None:
    with pytest.raises(DeclarationError):
        mtk.Param("x", 2.0, high=1.0)
    with pytest.raises(DeclarationError):
        mtk.Param("x", 0.5, high=1.0, grid=(0.1, 1.5))
    with pytest.raises(DeclarationError, match="type="):
        mtk.Param("x", None)


def test_the_grid_starts_with_the_defaults_and_has_every_combination_once() -> None:
    params = (
        mtk.Param("a", 0.3, grid=(0.1, 0.3)),
        mtk.Param("b", 1, grid=(1, 2)),
        mtk.Param("c", "x"),
    )
    grid = method(params=params).grid
    assert grid[0] == {"a": 0.3, "b": 1}
    assert sorted(map(str, grid)) == sorted(set(map(str, grid)))
    assert len(grid) == 4


def test_a_track_knows_its_two_kinds_of_cells() -> None:
    tasks = (mtk.Task(name="a", held_in=True), mtk.Task(name="b", held_in=False))
    track = mtk.Track(
        name="t", target="a:b", summary="", setting="", version="1", tasks=tasks
    )
    assert [t.name for t in track.held_in] == ["a"]
    assert [t.name for t in track.generalization] == ["b"]
    with pytest.raises(DeclarationError, match="held-in"):
        mtk.Track(
            name="t", target="", summary="", setting="", version="1", tasks=tasks[1:]
        )


def test_cells_of_base_ability_are_neither_held_in_nor_unseen() -> None:
    able = mtk.Task(name="c", held_in=False, ability=True)
    tasks = (mtk.Task(name="a", held_in=True), able)
    track = mtk.Track(
        name="t", target="a:b", summary="", setting="", version="1", tasks=tasks
    )
    assert track.abilities == (able,)
    assert track.generalization == ()
    with pytest.raises(DeclarationError, match="ability"):
        mtk.Task(name="c", held_in=True, ability=True)
    with pytest.raises(DeclarationError, match="twice"):
        mtk.Task(name="c", held_in=True, metrics=("a", "a"))
    with pytest.raises(DeclarationError, match="output"):
        mtk.Track(
            name="t",
            target="",
            summary="",
            setting="",
            version="1",
            tasks=tasks,
            output="pictures",
        )
    with pytest.raises(DeclarationError, match="kind"):
        mtk.Metric(name="m", target="a:b", summary="", kind="pair")


def test_every_declaration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        method().name = "other"  # type: ignore[misc]
