"""What this distribution offers to mtk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import mtk
from mtk_tasks_crosslingual import metrics
from mtk_tasks_crosslingual.cells import ABILITY, CELLS, HELD_IN, METRICS, MICRO, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

# Raise it when data, templates or recipes change: old records then do not count.
VERSION = "1"
NAME = "crosslingual-mt5"


@mtk.hookimpl
def mtk_tasks() -> Iterator[mtk.Track]:
    yield mtk.Track(
        name=NAME,
        target="mtk_tasks_crosslingual.track:CrosslingualMt5",
        summary="Questions, inference, summaries, senses, answerability x five languages",
        setting="language",
        version=VERSION,
        embedded=False,
        base="mT5-xl-lm-adapt (3.7 billion parameters)",
        options=(
            mtk.Param(
                "normalise",
                False,
                "divide the likelihood of an answer by its number of tokens",
            ),
            mtk.Param(
                "micro",
                MICRO,
                "items of a batch whose gradients are computed at once, in training",
                low=1,
            ),
        ),
        tasks=tuple(
            mtk.Task(
                name=cell,
                held_in=cell in HELD_IN,
                ability=cell == ABILITY,
                factors=tuple(zip(("task", "language"), parse(cell), strict=True)),
                metrics=METRICS[parse(cell)[0]],
            )
            for cell in CELLS
        ),
        source="SQuAD, XQuAD, XNLI, WikiLingua, XL-WiC, WiC, TyDi QA",
        licence="by data set; XL-WiC and WikiLingua for research only",
    )


@mtk.hookimpl
def mtk_metrics() -> Iterator[mtk.Metric]:
    targets: dict[str, tuple[Any, str]] = {
        "squad_mean": (metrics.squad_mean, "Mean of exact match and F1 of an answer"),
        "squad_em": (metrics.exact_match, "Share of answers that are a right one"),
        "squad_f1": (metrics.f1, "F1 of the words of an answer"),
        "token_accuracy": (
            metrics.token_accuracy,
            "Share of next tokens guessed right",
        ),
        "rouge_mean": (
            partial(metrics.rouge, metrics.ROUGE),
            "Mean F-measure of ROUGE-1, -2 and -L (rouge-score)",
        ),
    }
    for kind in metrics.ROUGE:
        target = partial(metrics.rouge, (kind,))
        targets[kind.lower()] = (target, f"F-measure of {kind} (rouge-score)")
    for name, (target, summary) in targets.items():
        yield mtk.Metric(name=name, target=target, summary=summary)
