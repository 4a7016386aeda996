"""How experts and the multitask model of ``domainnet-clip`` are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mtk import training
from mtk_tasks_domainnet import computing, pooling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.training import Progress, Regime

# arXiv 2409.18314, by its code: see docs/explanation/domainnet-clip.md.
EXPERT = training.Regime(rate=2e-5, batch=128, steps=1000, seed=42)
MULTITASK = replace(EXPERT, steps=10_000)
_BATCH = 256  # images per forward pass of an evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Images of one cell and split.

    Attributes:
        images: whole numbers, ``(n, 3, s, s)``.
        labels: rows of the head, ``(n,)``.
        canonical: the row that stands for each row of the head.
    """

    images: Tensor
    labels: Tensor
    canonical: Tensor


def train(
    model: Any,
    head: Tensor,
    *,
    train: Sequence[Part],
    validation: Sequence[Part],
    normalise: Callable[[Tensor], Tensor],
    regime: Regime,
    state: Path,
    identity: str,
    report: Callable[[str, float], None],
    device: str = "cpu",
) -> Progress:
    """Train the vision tower in place, under a frozen head.

    Args:
        model: a CLIP; its text tower is not touched.
        head: ``(rows, width)``.
        train: cells, pooled as they are.
        validation: cells; the score is the plain mean over them.
        normalise: whole numbers -> what the model takes.
        regime: the numbers.
        state: file of the unfinished run.
        identity: what it must have in common with this one.
        report: told how far it is.
        device: where to train.
    """
    sizes = [len(part.labels) for part in train]
    with computing.lent(model, device) as there:
        rows = head.to(there)

        def loss(step: int) -> Tensor:
            chosen = pooling.chosen(sizes, step, regime)
            images = torch.stack([train[cell].images[place] for cell, place in chosen])
            labels = torch.stack([train[cell].labels[place] for cell, place in chosen])
            embedded = model.encode_image(normalise(images.to(there)))
            logits = embedded @ rows.to(embedded).T  # (b, rows)
            return functional.cross_entropy(logits.float(), labels.to(there))

        def evaluate() -> float:
            scores = [accuracy(model, rows, part, normalise) for part in validation]
            return sum(scores) / len(scores)

        model.visual.requires_grad_(True)
        parameters = {f"visual.{n}": p for n, p in model.visual.named_parameters()}
        try:
            progress = training.fit(
                parameters,
                loss,
                regime,
                state=state,
                identity=identity,
                report=report,
                evaluate=evaluate,
            )
        finally:
            model.requires_grad_(False)
    return progress


def predict(
    model: Any, head: Tensor, images: Tensor, normalise: Callable[[Tensor], Tensor]
) -> Tensor:
    """The best row of the head for each image, ``(n,)``, on the head's device."""
    found = []
    with torch.no_grad():
        for part in images.split(_BATCH):
            embedded = model.encode_image(normalise(part.to(head.device)))
            found.append((embedded @ head.T).argmax(1))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def accuracy(
    model: Any, head: Tensor, part: Part, normalise: Callable[[Tensor], Tensor]
) -> float:
    """Top-1; a class with two rows is right in either."""
    rows = predict(model, head, part.images, normalise).cpu()
    right = part.canonical[rows] == part.canonical[part.labels]
    return float(right.double().mean())
