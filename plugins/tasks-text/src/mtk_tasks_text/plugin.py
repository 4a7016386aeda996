"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk
from mtk_tasks_text.cells import ABILITIES, CELLS, HELD_IN, METRICS, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

# Raise it when data, recipes or the shipped base change: old records then do not count.
VERSION = "1"


@mtk.hookimpl
def mtk_tasks() -> Iterator[mtk.Track]:
    yield mtk.Track(
        name="cldr-t5",
        target="mtk_tasks_text.track:CldrT5",
        summary="Tasks on names, dates and numbers x languages; a small byte-level T5",
        setting="language",
        version=VERSION,
        adapter="full",
        output="categorical",
        most_steps=40,
        base="byte-level T5, 1.3 M parameters, pre-trained on translating CLDR data",
        tasks=tuple(
            mtk.Task(
                name=name,
                held_in=name in HELD_IN,
                factors=tuple(zip(("task", "language"), parse(name), strict=True)),
                metrics=METRICS[parse(name)[0]],
                ability=name in ABILITIES,
            )
            for name in (*CELLS, *ABILITIES)
        ),
        source="Unicode CLDR, as packaged by Babel",
        licence="Unicode-3.0",
    )
