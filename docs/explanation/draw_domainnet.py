"""Draw the pictures of the pages ``domainnet-clip`` and ``domainnet-sd21``: their grids.

Run it from anywhere; it needs matplotlib: ``python docs/explanation/draw_domainnet.py``.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt

from mtk_tasks_domainnet import prompts
from mtk_tasks_domainnet.cells import DOMAINNET
from mtk_tasks_domainnet.plugin import mtk_tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
# Test images of each group's held-in cell, counted from the official lists.
TEST_IMAGES = (
    *(1683, 1038, 1151, 1089),
    *(1227, 927, 763, 899),
    *(617, 732, 1273, 949),
    *(1500, 1350, 1500, 1200),
    *(1282, 1521, 693, 1034),
    *(421, 282, 197, 833),
)
HELD_IN, OTHER = "#9fc5e8", "#f0f0ee"
ROWS, DOMAINS = len(DOMAINNET.groups), DOMAINNET.domains
SIDE = 6.15  # where the text on the right begins
SIZE = 8.5


def grid(height: float) -> tuple[Figure, Axes]:
    """Names and sizes of the groups, and a shaded cell for each and every domain."""
    figure, axes = plt.subplots(figsize=(10, height), dpi=110)
    write(axes, -0.72, -0.5, "group", ha="right", style="italic")
    write(axes, -0.08, -0.5, "classes", ha="right", style="italic")
    for column, domain in enumerate(DOMAINS):
        write(axes, column + 0.5, -0.5, domain, ha="center", weight="bold")
    for row, (group, classes) in enumerate(DOMAINNET.groups.items()):
        write(axes, -0.72, row + 0.5, group, ha="right")
        write(axes, -0.08, row + 0.5, str(len(classes)), ha="right")
        for column, domain in enumerate(DOMAINS):
            held_in = f"{domain}-{group}" in DOMAINNET.held_in
            shade(axes, column + 0.02, row, 0.96, HELD_IN if held_in else OTHER)
    axes.set_axis_off()
    return figure, axes


def write(axes: Axes, x: float, y: float, text: str, **more: Any) -> None:
    """Put one line of text, its middle at ``y``."""
    axes.text(x, y, text, va="center", **{"fontsize": SIZE, **more})


def shade(axes: Axes, x: float, row: float, width: float, colour: str) -> None:
    """Fill a box of one row."""
    axes.add_patch(plt.Rectangle((x, row + 0.06), width, 0.88, color=colour))


def legend(axes: Axes, held_in: str, other: str) -> None:
    """Say below the grid what the two shades mean."""
    for line, (colour, text) in enumerate(((HELD_IN, held_in), (OTHER, other))):
        y = ROWS + 0.5 + line
        shade(axes, 0.02, y, 0.3, colour)
        write(axes, 0.42, y + 0.5, text)


def draw_clip() -> Figure:
    """The grid with the sizes of the held-in cells."""
    figure, axes = grid(7.2)
    write(axes, SIDE, -0.5, "among them", style="italic")
    pairs = zip(DOMAINNET.held_in, TEST_IMAGES, strict=True)
    for row, (cell, count) in enumerate(pairs):
        domain, group = DOMAINNET.parse(cell)
        column = DOMAINS.index(domain)
        write(axes, column + 0.5, row + 0.5, f"{count:,}", ha="center")
        classes = [name.replace("_", " ") for name in DOMAINNET.groups[group]]
        some = next(text for n in (3, 2) if len(text := ", ".join(classes[-n:])) < 36)
        write(axes, SIDE, row + 0.5, some, fontsize=SIZE - 1)
    legend(
        axes,
        "24 held-in cells, one expert each; the number is that of its test images",
        "120 cells of generalization, which no expert has seen",
    )
    axes.set(xlim=(-2.45, 8.55), ylim=(ROWS + 2.7, -1.2))
    return figure


def draw_sd21() -> Figure:
    """The grid with the wording of the prompts and what is scored."""
    figure, axes = grid(8.0)
    for column, domain in enumerate(DOMAINS):
        lines = wrap(prompts.of_domain(domain).format("CLASS"), 15)
        for line, text in enumerate(reversed(lines)):
            y = -1.45 - 0.75 * line
            write(axes, column + 0.5, y, text, ha="center", fontsize=7.5)
    write(axes, -0.08, -1.45, "prompt", ha="right", style="italic")
    (track,) = (track for track in mtk_tasks() if track.name == "domainnet-sd21")
    images = next(o.default for o in track.options if o.name == "images")
    cells, neutral = track.tasks[0].metrics, track.abilities[0].metrics
    for row, cell in enumerate(DOMAINNET.held_in):
        column = DOMAINS.index(DOMAINNET.parse(cell)[0])
        write(axes, column + 0.5, row + 0.5, "LoRA", ha="center")
    side = (
        "*in each of the 144 cells",
        f"{images} generated images",
        f"of up to {images // 2} prompts, by",
        *(f"!{name}" for name in cells),
        "",
        f"*on {len(prompts.NEUTRAL)} neutral prompts",
        f"{images} generated images,",
        "beside the base's own, by",
        *(f"!{name}" for name in neutral),
    )
    looks = {"*": {"style": "italic"}, "!": {"weight": "bold"}}
    for line, text in enumerate(side):
        write(axes, SIDE, line + 0.5, text.lstrip("*!"), **looks.get(text[:1], {}))
    legend(
        axes,
        "24 held-in cells, one LoRA adapter each",
        "120 cells of generalization: the domain is known, and the group, not both together",
    )
    axes.set(xlim=(-2.45, 8.55), ylim=(ROWS + 2.7, -3.4))
    return figure


def check(figure: Figure) -> None:
    """Refuse texts that leave the picture or run into each other."""
    figure.canvas.draw()
    (axes,) = figure.axes
    page = figure.bbox.padded(-2)
    found = [(t.get_text(), t.get_window_extent()) for t in axes.texts if t.get_text()]
    for text, box in found:
        if not (page.contains(*box.min) and page.contains(*box.max)):
            raise SystemExit(f"{text!r} leaves the picture")
    for (one, first), (two, second) in combinations(found, 2):
        if first.padded(2, 0).overlaps(second):
            raise SystemExit(f"{one!r} and {two!r} overlap")


def main() -> None:
    """Write both pictures."""
    for name, figure in (("clip", draw_clip()), ("sd21", draw_sd21())):
        figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
        check(figure)
        figure.savefig(HERE / f"domainnet-{name}.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
