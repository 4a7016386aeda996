"""What the plugin declares."""

from __future__ import annotations

import subprocess
import sys

from mtk.loading import resolve
from mtk_tasks_diffusion import cells, plugin


def test_track_declares_the_grid_and_one_ability() -> None:
    (track,) = plugin.mtk_tasks()
    assert [task.name for task in track.held_in] == list(cells.HELD_IN)
    assert [task.name for task in track.generalization] == list(cells.GENERALIZATION)
    assert [task.name for task in track.tasks if task.ability] == [cells.NEUTRAL]
    assert track.output == "gaussian"
    assert track.adapter == "lora"


def test_target_of_the_track_is_what_it_names() -> None:
    (track,) = plugin.mtk_tasks()
    target = resolve(track.target)
    for part in ("prepare", "data", "outputs", "targets", "predict", "sheet", "build"):
        assert callable(getattr(target, part))


def test_catalogue_imports_nothing_heavy() -> None:
    script = """
import sys
import mtk_tasks_diffusion.plugin as plugin
list(plugin.mtk_tasks())
assert not {"torch", "diffusers", "peft", "sklearn", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
