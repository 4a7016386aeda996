"""Prompts with their answers, and what an expert must be."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk_tasks_crosslingual import metrics
from mtk_tasks_crosslingual.cells import ABILITY, CELLS, RANKED, parse
from mtk_tasks_crosslingual.sets import examples
from mtk_tasks_crosslingual.templates import ANSWERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk_tasks_crosslingual.cells import Cuts
    from mtk_tasks_crosslingual.sets import Example


# The answers of the data sets, in the order of their labels, as one names them here.
_LABELS = {
    "nli": ("entailment", "neutral", "contradiction"),
    "sense": ("different", "same"),
    "answerability": ("yes", "no", "none"),
}


def filled(template: str, example: Example, cell: str) -> tuple[str, str]:
    """Prompt and right answer of one item."""
    answer = (
        ANSWERS[parse(cell)][example.label]
        if example.label >= 0
        else example.answers[0]
    )
    return template.format(**example.fields), answer


def labels(
    task: str, found: Sequence[Example], inputs: Mapping[str, Tensor]
) -> list[Any]:
    """What the metrics of a task take: numbers, tables of right texts, or tokens."""
    kind, language = parse(task)
    if kind in RANKED:
        return [example.label for example in found]
    if task == ABILITY:
        rows = zip(inputs["targets"], inputs["counted"], strict=True)
        return [row[counted].tolist() for row, counted in rows]
    return [{"texts": example.answers, "language": language} for example in found]


def commonest(root: Path, cuts: Cuts) -> list[str]:
    """What the commonest answer alone would score, a sentence per task with ranking."""
    said = []
    for task in RANKED:
        cells = []
        for cell in CELLS:
            if parse(cell)[0] != task:
                continue
            counts = Counter(e.label for e in examples(root, cell, "test", cuts))
            label, most = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            share = 100 * most / counts.total()
            cells.append(f"{cell} {share:.1f} ({_LABELS[task][label]})")
        said.append(
            f"The commonest answer alone would score, in %: {', '.join(cells)}."
        )
    return said


def identity(
    base: str,
    pairs: Sequence[tuple[str, str]],
    validation: Mapping[str, Mapping[str, Any]],
    settings: object,
) -> str:
    """What an unfinished run must have in common with the run that goes on with it."""
    digest = hashlib.sha256(f"{base} {settings}".encode())
    for pair in pairs:
        digest.update(json.dumps(pair).encode())
    for cell, data in validation.items():
        digest.update(f"{cell} {data['labels']}".encode())
        for name, tensor in data["inputs"].items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def mean_score(cell: str, predictions: list[Any], labels: list[Any]) -> float:
    """The metric that ranks a held-in cell."""
    kind = parse(cell)[0]
    if kind in RANKED:
        pairs = zip(predictions, labels, strict=True)
        return statistics.fmean(float(p == r) for p, r in pairs)
    given: dict[str, Any] = {"predictions": predictions, "references": labels}
    if kind == "qa":
        return statistics.fmean(metrics.squad_mean(**given))
    return statistics.fmean(metrics.rouge(metrics.ROUGE, **given))


def check_same(source: Path, base: Path) -> None:
    """Refuse an expert whose tensors are not those of the base."""
    from mtk.checkpoint import SafetensorsCheckpoint

    def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UsageError(f"{folder} holds no safetensors")
        opened = SafetensorsCheckpoint(files, str(folder))
        return {name: opened.info(name).shape for name in opened.names()}

    given, wanted = shapes(source), shapes(base)
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{source}: {name!r} is {given.get(name, 'missing')}, "
                f"and {wanted.get(name, 'missing')} in the base"
            )
