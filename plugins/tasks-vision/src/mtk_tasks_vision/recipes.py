"""How the base, the experts and the multitask model of ``digits-clip`` are made.

Every function is deterministic in its seed on one thread; the callers see to the thread
count. What an expert sees follows from the seed and the number of the step. The base, whose
bytes are shipped, is still trained with the one generator that made it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from mtk import training
from mtk_tasks_vision import data, glyphs, model
from mtk_tasks_vision.cells import GROUPS, STYLES, classes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Report = Callable[[str, float], None]

# AdamW's own, with which the base was pre-trained.
_DECAY = 0.01
# Wordings seen in pre-training; the first is the one used for the zero-shot head.
TEMPLATES = (
    model.PROMPT,
    "a drawing of the digit {}",
    "the digit {}",
    "{}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """The numbers that decide how hard the track is.

    Attributes:
        pretrain_steps: steps of contrastive pre-training.
        pretrain_rate: its peak learning rate.
        handwritten: handwritten images in a pre-training batch; the rest is print.
        steps: steps of one expert.
        rate: constant learning rate of an expert.
        multitask_steps: steps of the multitask model over all held-in cells.
        batch: images per step, everywhere.
    """

    pretrain_steps: int = 600
    pretrain_rate: float = 2e-3
    handwritten: int = 2
    steps: int = 40
    rate: float = 5e-4
    multitask_steps: int = 160
    batch: int = 64


REGIME = Regime()


def pretrain(
    seed: int, regime: Regime = REGIME, report: Report | None = None
) -> torch.nn.Module:
    """Train both towers on printed glyphs and some handwriting in every style.

    Each image is classified among the ten digits by the text tower's embeddings of
    one wording, drawn anew each step, so that the zero-shot head means something.
    """
    clip: Any = model.build(seed).train()
    generator = torch.Generator().manual_seed(seed)
    written, labels = _handwriting()
    tokens = [
        model.tokenize([t.format(name) for name in model.DIGIT_NAMES])
        for t in TEMPLATES
    ]
    hand, steps = regime.handwritten, regime.pretrain_steps
    peak = regime.pretrain_rate

    def loss(_: int) -> Tensor:
        pick = torch.randint(len(labels), (hand,), generator=generator)
        printed = torch.randint(10, (regime.batch - hand,), generator=generator)
        ink = torch.cat([written[pick], glyphs.draw(printed, generator)])
        images = _in_random_styles(ink, generator)
        which = int(torch.randint(len(tokens), (), generator=generator))
        logits = clip.encode_image(images) @ clip.encode_text(tokens[which]).T
        return functional.cross_entropy(logits, torch.cat([labels[pick], printed]))

    numbers = training.Regime(
        rate=peak, batch=regime.batch, steps=steps, seed=seed, decay=_DECAY
    )
    training.fit(
        dict(clip.named_parameters()),
        loss,
        numbers,
        report=report,
        schedule=lambda optimiser: OneCycleLR(optimiser, peak, total_steps=steps),
    )
    trained: torch.nn.Module = clip.eval()
    return trained


def tuned(
    base: torch.nn.Module,
    cells: Sequence[str],
    *,
    seed: int,
    head_scope: str = "group",
    regime: Regime = REGIME,
) -> torch.nn.Module:
    """Return an expert of one cell, or a multitask model of several, pooled.

    A copy of the base whose vision tower was trained under the frozen zero-shot head;
    each image is classified within the head scope of its own cell.
    """
    clip: Any = copy.deepcopy(base).train()
    clip.requires_grad_(False)
    clip.visual.requires_grad_(True)
    with torch.no_grad():
        head = model.zero_shot_head(base)  # (10, WIDTH)
    inputs, labels, masks = _pooled(cells, head_scope)
    steps = regime.steps if len(cells) == 1 else regime.multitask_steps
    numbers = training.Regime(
        rate=regime.rate, batch=regime.batch, steps=steps, seed=seed
    )

    def loss(step: int) -> Tensor:
        pick = training.items(len(labels), step, numbers)
        logits = clip.encode_image(inputs[pick]) @ head.T + masks[pick]  # (b, 10)
        return functional.cross_entropy(logits, labels[pick])

    training.fit(dict(clip.visual.named_parameters()), loss, numbers)
    trained: torch.nn.Module = clip.requires_grad_(True).eval()
    return trained


def _pooled(cells: Sequence[str], scope: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the training images of some cells with the masks of their heads.

    Returns:
        Inputs ``(n, 3, s, s)``, labels ``(n,)``, and what to add to the logits,
        ``(n, 10)``: minus infinity for digits outside an image's head scope.
    """
    inputs, labels, masks = [], [], []
    for cell in cells:
        part = data.examples(cell, "train")
        mask = torch.full((10,), -torch.inf)
        mask[list(classes(cell, scope))] = 0.0
        inputs.append(torch.from_numpy(part.inputs))
        labels.append(torch.from_numpy(part.labels))
        masks.append(mask.expand(len(part.labels), 10))
    return torch.cat(inputs), torch.cat(labels), torch.cat(masks)


def _handwriting() -> tuple[Tensor, Tensor]:
    """Ink ``(n, s, s)`` and digits ``(n,)`` of the images kept for pre-training."""
    parts = [data.examples(f"plain-{group}", "pretrain") for group in GROUPS]
    inputs = np.concatenate([part.inputs[:, 0] for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return torch.from_numpy(inputs * data.STD + data.MEAN), torch.from_numpy(labels)


def _in_random_styles(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each image in a random style: ``(n, s, s)`` to inputs ``(n, 3, s, s)``."""
    style = torch.randint(len(STYLES), (len(ink),), generator=generator)
    noise = torch.randn(ink.shape, generator=generator)
    drawn = torch.empty_like(ink)
    for i, name in enumerate(STYLES):
        mine = style == i
        pixels = data.render(ink[mine].numpy(), name, noise[mine].numpy())
        drawn[mine] = torch.from_numpy(pixels)
    return torch.from_numpy(data.normalise(drawn.numpy()))
