"""Draw the picture of the page ``crosslingual-mt5``: which cells the grid has.

Run it from anywhere; it needs matplotlib:
``python docs/explanation/draw_crosslingual.py``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt

from mtk_tasks_crosslingual.cells import (
    ABILITY,
    CELLS,
    GENERALIZATION,
    HELD_IN,
    METRICS,
    parse,
)
from mtk_tasks_crosslingual.sets import NAMES, set_of

PICTURE = Path(__file__).with_name("crosslingual-mt5.png")
SETS = {
    "squad": "SQuAD",
    "xquad": "XQuAD",
    "xnli": "XNLI",
    "wiki_lingua": "WikiLingua",
    "xlwic": "XL-WiC",
    "wic": "WiC",
    "tydiqa": "TyDi QA",
}
SCORES = {
    "squad_mean": "mean of exact\nmatch and F1",
    "accuracy": "accuracy",
    "rouge_mean": "mean of ROUGE-1,\n-2 and -L",
    "token_accuracy": "share of tokens\nguessed right",
}
SHADES = {"held in": "#8fbfe8", "generalization": "#e3eef8", "ability": "#f3e2c0"}
WIDTH, HEIGHT, GAP = 1.0, 1.0, 0.3


def draw() -> None:
    """Write the picture."""
    # In this order held-in cells make the diagonal.
    tasks, languages = zip(*map(parse, HELD_IN), strict=True)
    odd_task, odd_language = parse(ABILITY)
    rows = {task: y * HEIGHT for y, task in enumerate(tasks)}
    columns = {language: x * WIDTH for x, language in enumerate(languages)}
    rows[odd_task] = len(tasks) * HEIGHT + GAP
    columns[odd_language] = len(languages) * WIDTH + GAP
    metrics = columns[odd_language] + WIDTH + 0.75
    figure, axes = plt.subplots(figsize=(10.4, 5.4), dpi=110)
    for task in tasks:
        for language in languages:
            if f"{task}-{language}" not in CELLS:
                box(axes, columns[language], rows[task], None)
                text(axes, columns[language], rows[task], "no data", color="#8a8a8a")
    for cell in CELLS:
        task, language = parse(cell)
        kind = (
            "held in"
            if cell in HELD_IN
            else "generalization"
            if cell in GENERALIZATION
            else "ability"
        )
        box(axes, columns[language], rows[task], SHADES[kind])
        name = SETS[set_of(cell).folder.partition(".")[0]]
        weight = "bold" if kind == "held in" else "normal"
        text(axes, columns[language], rows[task], name, weight=weight)
    for task, y in rows.items():
        score = SCORES[METRICS[task][0]]
        axes.text(metrics, y + HEIGHT / 2, score, ha="center", va="center", fontsize=9)
        axes.text(-0.1, y + HEIGHT / 2, task, ha="right", va="center", fontsize=10.5)
    for language, x in columns.items():
        name = NAMES.get(language, "spanish").capitalize()
        axes.text(x + WIDTH / 2, -0.12, name, ha="center", va="bottom", fontsize=10.5)
    axes.text(metrics, -0.12, "score", ha="center", va="bottom", fontsize=10.5)
    legend(axes, rows[odd_task] + HEIGHT + 0.35)
    axes.set(xlim=(-1.5, metrics + 0.85), ylim=(rows[odd_task] + HEIGHT + 0.75, -0.5))
    axes.set_axis_off()
    figure.subplots_adjust(left=0.005, right=0.995, top=0.995, bottom=0.005)
    figure.savefig(PICTURE, metadata={"Software": None})


def box(axes: plt.Axes, x: float, y: float, shade: str | None) -> None:
    """One cell, or the hatched place of one that does not exist."""
    looks = (
        {"facecolor": "white", "edgecolor": "#dcdcdc", "hatch": "////"}
        if shade is None
        else {"facecolor": shade, "edgecolor": "white"}
    )
    place = (x + 0.03, y + 0.04)
    axes.add_patch(
        plt.Rectangle(place, WIDTH - 0.06, HEIGHT - 0.08, linewidth=0, **looks)
    )


def text(axes: plt.Axes, x: float, y: float, said: str, **looks: str) -> None:
    """The words in the middle of a cell."""
    looks = {"backgroundcolor": "white", **looks} if said == "no data" else looks
    axes.text(
        x + WIDTH / 2,
        y + HEIGHT / 2,
        said,
        ha="center",
        va="center",
        fontsize=8.5 if said == "no data" else 10,
        **looks,
    )


def legend(axes: plt.Axes, y: float) -> None:
    """What the shades mean."""
    said = {
        "held in": "held in: an expert is trained",
        "generalization": "generalization: scored only",
        "ability": "base ability: scored only",
    }
    for number, (kind, words) in enumerate(said.items()):
        x = 0.03 + 2.65 * number
        axes.add_patch(plt.Rectangle((x, y - 0.12), 0.3, 0.24, color=SHADES[kind]))
        axes.text(x + 0.38, y, words, ha="left", va="center", fontsize=9)


if __name__ == "__main__":
    draw()
