"""One run through the shared protocol, on the toy track."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.protocol import bench as run_bench
from mtk.testing._basics import BASICS
from mtk.testing._checks import Check, Failed, NotApplicable
from mtk.testing._models import short_lengths
from mtk.testing._toy import MOST_EXPERTS, toy_registry

if TYPE_CHECKING:
    from mtk.protocol import Bench
    from mtk.scores import Row
    from mtk.testing._checks import Subject

TRACK = "toy"
_BUDGET = 2  # the default parameters and one more point of the grid


def bench(subject: Subject) -> None:
    """The method gets its line in the table, and a second run has nothing left to do."""
    method = subject.method
    if method.needs.experts[0] > MOST_EXPERTS:
        raise NotApplicable(f"takes more than {MOST_EXPERTS} experts")
    if "full" not in method.needs.checkpoints:
        raise NotApplicable("merges no full checkpoints")
    if method.needs.split == "test_time":
        raise NotApplicable(
            "asks for test inputs, which the protocol gives to no method"
        )
    with tempfile.TemporaryDirectory() as folder:
        first, again = (_bench(subject, Path(folder)) for _ in range(2))
    _complete(subject, first)
    if again.plan.todo:
        left = ", ".join(item.name for item in again.plan.todo)
        raise Failed(f"a second run computes {left} again", _snippet(subject))
    one, two = _row(subject, first), _row(subject, again)
    if one.tasks != two.tasks:
        raise Failed(
            f"scores {one.tasks}, and {two.tasks} when read back", _snippet(subject)
        )


def _bench(subject: Subject, folder: Path) -> Bench:
    return run_bench(
        methods=[subject.method.name],
        track=TRACK,
        params=short_lengths(subject.method) or None,
        results=folder / "results",
        cache=folder / "cache",
        budget=_BUDGET,
        jobs=0,
        registry=toy_registry(subject.method, subject.plugin),
    )


def _complete(subject: Subject, found: Bench) -> None:
    for failure in found.failures:
        raise Failed(f"{failure.method}: {failure.message}", _snippet(subject))
    for skipped in found.plan.skipped:
        raise Failed(
            f"{skipped.method} was not run: {skipped.reason}", _snippet(subject)
        )
    row = _row(subject, found)
    if row.group != subject.method.output:
        raise Failed(f"stands among the {row.group} results", _snippet(subject))
    for name, score in row.tasks.items():
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise Failed(f"the score of {name!r} is {score}", _snippet(subject))


def _row(subject: Subject, found: Bench) -> Row:
    rows = [row for row in found.rows if row.name == subject.method.name]
    if not rows:
        names = ", ".join(row.name for row in found.rows)
        raise Failed(
            f"no line of the table is its own; there are {names}", _snippet(subject)
        )
    return rows[0]


def _snippet(subject: Subject) -> str:
    params: Any = short_lengths(subject.method)
    return (
        f"import mtk\nfrom mtk.testing import toy_registry\n{subject.lookup()}\n"
        f"mtk.bench(methods=[method.name], track={TRACK!r}, params={params or None},\n"
        f"          budget={_BUDGET}, registry=toy_registry(method))"
    )


CHECKS = (
    Check(
        "protocol.bench",
        "A method is there to be compared with the others under the shared protocol.",
        bench,
        BASICS,
    ),
)
