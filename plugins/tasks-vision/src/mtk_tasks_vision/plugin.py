"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk
from mtk_tasks_vision.cells import CELLS, HEAD_SCOPES, HELD_IN, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

# Raise it when data, recipes or the shipped base change: old records then do not count.
VERSION = "2"


@mtk.hookimpl
def mtk_tasks() -> Iterator[mtk.Track]:
    yield mtk.Track(
        name="digits-clip",
        target="mtk_tasks_vision.track:DigitsClip",
        summary="Handwritten digits in visual styles x groups of digits; a small open_clip CLIP",
        setting="image classification",
        version=VERSION,
        adapter="full",
        merge=("visual.*",),
        options=(
            mtk.Param(
                "head_scope",
                "group",
                "classes of the zero-shot head: the task's own group, or all ten digits",
                choices=HEAD_SCOPES,
            ),
        ),
        tasks=(
            *(
                mtk.Task(
                    name=name,
                    held_in=name in HELD_IN,
                    factors=tuple(zip(("style", "group"), parse(name), strict=True)),
                )
                for name in CELLS
            ),
            mtk.Task(
                name="printed",
                held_in=False,
                ability=True,
                factors=(("style", "all"), ("group", "all")),
            ),
        ),
        base="a narrow open_clip CLIP of 0.3 million parameters, shipped with it",
        source="scikit-learn's digits (UCI optical recognition of handwritten digits, 1998)",
        licence="CC BY 4.0",
    )
