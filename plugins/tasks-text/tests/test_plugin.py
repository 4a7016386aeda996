"""What this distribution declares."""

from __future__ import annotations

import subprocess
import sys

from mtk.loading import resolve
from mtk_tasks_text import cells, plugin


def test_the_track_declares_every_cell_once() -> None:
    (track,) = plugin.mtk_tasks()
    assert tuple(task.name for task in track.held_in) == cells.HELD_IN
    assert {task.name for task in track.generalization} == set(cells.GENERALIZATION)
    assert tuple(task.name for task in track.abilities) == cells.ABILITIES
    assert len(track.tasks) == 27
    assert {task.metrics[0] for task in track.tasks} == {
        "accuracy",
        "exact_match",
        "chrf",
    }


def test_factors_name_task_and_language() -> None:
    (track,) = plugin.mtk_tasks()
    found = {task.name: dict(task.factors) for task in track.tasks}
    assert found["number-pl"] == {"task": "number", "language": "pl"}
    assert found["translate-names"] == {"task": "translate-names", "language": "all"}


def test_what_is_declared_can_be_loaded() -> None:
    (track,) = plugin.mtk_tasks()
    assert callable(resolve(track.target))


def test_the_catalogue_needs_no_heavy_import() -> None:
    script = """
import sys
from mtk_tasks_text import plugin
list(plugin.mtk_tasks())
assert not {"torch", "transformers", "babel"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
