"""Draw the picture of the page ``cldr-t5``: one test item of every cell.

Run it from anywhere; it needs matplotlib: ``python docs/explanation/draw_cldr_t5.py``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt

from mtk_tasks_text.cells import CELLS, HELD_IN, LANGUAGES, TASKS, parse
from mtk_tasks_text.data import examples

# Which item of the test split is shown of each task: one that says something.
SHOWN = {"kind": 2, "same": 7, "date": 2, "number": 0, "period": 1}
PICTURE = Path(__file__).with_name("cldr-t5.png")


def draw() -> None:
    """Write the picture."""
    rows, columns = len(TASKS), len(LANGUAGES)
    figure, axes = plt.subplots(figsize=(11, 3.9), dpi=110)
    for cell in CELLS:
        task, language = parse(cell)
        y, x = TASKS.index(task), LANGUAGES.index(language)
        shade = "#cfe3f5" if cell in HELD_IN else "#f4f4f2"
        axes.add_patch(plt.Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, color=shade))
        part = examples(cell, "test")
        question, answer = part.inputs[SHOWN[task]], part.labels[SHOWN[task]]
        axes.text(x + 0.5, y + 0.36, question, ha="center", va="center", fontsize=6.6)
        axes.text(
            x + 0.5,
            y + 0.7,
            answer,
            ha="center",
            va="center",
            fontsize=7.6,
            weight="bold",
        )
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_xticks([i + 0.5 for i in range(columns)], LANGUAGES)
    axes.set_yticks([i + 0.5 for i in range(rows)], TASKS)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Software": None})


if __name__ == "__main__":
    draw()
