"""Draw the picture of the page ``cldr-t5``: one test item of every cell.

Run it from anywhere; it needs matplotlib: ``python docs/explanation/draw_cldr_t5.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt

from mtk_tasks_text.cells import CELLS, HELD_IN, LANGUAGES, TASKS, parse
from mtk_tasks_text.data import examples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

# Which item of the test split is shown of each task: one that says something.
SHOWN = {"kind": 2, "same": 7, "date": 2, "number": 0, "period": 1}
PICTURE = Path(__file__).with_name("cldr-t5.png")


def draw() -> None:
    """Write the picture."""
    rows, columns = len(TASKS), len(LANGUAGES)
    figure, axes = plt.subplots(figsize=(11, 4.4), dpi=110)
    boxes = {cell: box_of(axes, cell) for cell in CELLS}
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_xticks([i + 0.5 for i in range(columns)], LANGUAGES)
    axes.set_yticks([i + 0.5 for i in range(rows)], TASKS)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    figure.tight_layout()
    for cell, box in boxes.items():
        write(axes, cell, box)
    figure.savefig(PICTURE, metadata={"Software": None})


def box_of(axes: Axes, cell: str) -> Rectangle:
    """Draw the ground of a cell."""
    task, language = parse(cell)
    place = LANGUAGES.index(language) + 0.02, TASKS.index(task) + 0.04
    shade = "#cfe3f5" if cell in HELD_IN else "#f4f4f2"
    return axes.add_patch(plt.Rectangle(place, 0.96, 0.92, color=shade))


def write(axes: Axes, cell: str, box: Rectangle) -> None:
    """Write an item of a cell, and see that it stays inside."""
    task, _ = parse(cell)
    part = examples(cell, "test")
    question, answer = part.inputs[SHOWN[task]], part.labels[SHOWN[task]]
    lines = question.replace(": ", ":\n", 1)  # a line for the word that asks
    x, y = box.get_x() + box.get_width() / 2, box.get_y()
    middle = {"ha": "center", "va": "center"}
    texts = (
        axes.text(x, y + 0.31, lines, fontsize=6.6, linespacing=1.25, **middle),
        axes.text(x, y + 0.73, answer, fontsize=7.6, weight="bold", **middle),
    )
    space = box.get_window_extent()
    for text in texts:
        extent = text.get_window_extent()
        if not (space.x0 < extent.x0 and extent.x1 < space.x1):
            raise ValueError(f"{cell}: {text.get_text()!r} is wider than its cell")
    if texts[0].get_window_extent().y0 < texts[1].get_window_extent().y1:
        raise ValueError(f"{cell}: question and answer overlap")


if __name__ == "__main__":
    draw()
