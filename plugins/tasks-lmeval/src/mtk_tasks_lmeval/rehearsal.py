"""What only the harness and the metrics know of a track file, asked before anything runs.

Items of every cell go through the same code as in the benchmark, with a stand-in for the
model, so that a wrong task, metric or item is told once and not by every method.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from mtk.errors import MtkError, UsageError, first_line
from mtk.loading import load
from mtk.scoring import score
from mtk_tasks_lmeval import harness, splits
from mtk_tasks_lmeval.metrics import scores_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mtk.declare import Metric
    from mtk_tasks_lmeval.spec import Cell, Spec

_TEXTS = 8  # references that a metric is tried on; some need two or more


def rehearse(spec: Spec, load_task: Callable[[Cell, int], Any], cell: Cell) -> None:
    """Load a cell's tasks, ask for their items, and score one of each split.

    Args:
        spec: the track.
        load_task: gives the harness's task of a cell's part (:mod:`splits`).
        cell: the cell.

    Raises:
        UsageError: something of it cannot work, in at most three lines.
    """
    where = f"{spec.path}: cell {cell.name!r}"
    for split in splits.needed(cell):
        part = splits.part_of(cell, split)
        label = splits.source_of(cell, part).label
        task = load_task(cell, part)
        with _told(f"{where}: {label!r} does not work"):
            chosen = splits.places(cell, harness.count(task), split, where)
            asked = chosen[:_TEXTS] if cell.source.data else chosen
            pairs = harness.requests(spec, cell, task, _StandIn(), asked)
            (sample,) = harness.samples(spec, cell, _StandIn(), task, chosen[:1])
            if not cell.source.data:
                scores_of(cell, sample, label, where)
        if cell.source.data:
            _try_metrics(cell, [answer.strip() for _, answer in pairs], where)


class _StandIn(LM):  # type: ignore[misc]  # lm_eval has no types
    """Answers as a model would, without one."""

    tokenizer_name = ""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return [(-1.0, False) for _ in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        return [-1.0 for _ in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return ["1" for _ in requests]

    def apply_chat_template(
        self,
        chat_history: list[dict[str, str]],
        add_generation_prompt: bool = True,  # noqa: ARG002  the harness's
    ) -> str:
        return "\n".join(turn["content"] for turn in chat_history)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say whatever a task or its own code raises in two lines."""
    try:
        yield
    except MtkError:
        raise
    except Exception as error:
        raise UsageError(
            f"{what}\n{type(error).__name__}: {first_line(error)}"
        ) from error


def _try_metrics(cell: Cell, texts: list[str], where: str) -> None:
    """Score right and wrong answers by every metric of a cell of texts."""
    installed = {provided.item.name: provided.item for provided in load().metrics}
    for name in cell.metrics:
        # One of a plugin for this run only is not among them.
        metric = installed.get(name.rpartition(":")[2])
        why = _unfit(metric, texts) if metric else ""
        if why:
            fit = (n for n, other in installed.items() if not _unfit(other, texts))
            raise UsageError(
                f"{where}: the metric {name!r} does not score texts\n{why}\n"
                f"Metrics that do: {', '.join(fit)}"
            )


def _unfit(metric: Metric, texts: list[str]) -> str:
    """Why a metric does not score texts; nothing if it does."""
    try:
        score(metric, texts, texts)
        score(metric, ["", *texts[:-1]], texts)  # wrong answers, of other lengths
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return ""
