"""How the base, the experts and the multitask model of ``digits-clip`` are made.

Every function is deterministic in its seed on one thread: all randomness comes from
a ``torch.Generator``, and the callers see to the thread count.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtk_tasks_vision import data, glyphs, model
from mtk_tasks_vision.cells import GROUPS, HELD_IN, STYLES, classes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Report = Callable[[float], None]

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
    clip: Any = model.build(seed)
    generator = torch.Generator().manual_seed(seed)
    written, labels = _handwriting()
    tokens = [
        model.tokenize([t.format(name) for name in model.DIGIT_NAMES])
        for t in TEMPLATES
    ]
    optimiser = torch.optim.AdamW(clip.parameters(), lr=regime.pretrain_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, regime.pretrain_rate, total_steps=regime.pretrain_steps
    )
    hand = regime.handwritten
    clip.train()
    for step in range(regime.pretrain_steps):
        pick = torch.randint(len(labels), (hand,), generator=generator)
        printed = torch.randint(10, (regime.batch - hand,), generator=generator)
        ink = torch.cat([written[pick], glyphs.draw(printed, generator)])
        images = _in_random_styles(ink, generator)
        which = int(torch.randint(len(tokens), (), generator=generator))
        logits = clip.encode_image(images) @ clip.encode_text(tokens[which]).T
        loss = functional.cross_entropy(logits, torch.cat([labels[pick], printed]))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if report is not None:
            report((step + 1) / regime.pretrain_steps)
    trained: torch.nn.Module = clip.eval()
    return trained


def finetune(
    base: torch.nn.Module,
    cell: str,
    *,
    seed: int,
    head_scope: str = "group",
    regime: Regime = REGIME,
) -> torch.nn.Module:
    """Return an expert: a copy of the base whose vision tower knows one cell."""
    return _train(
        base, [cell], steps=regime.steps, seed=seed, scope=head_scope, regime=regime
    )


def multitask(
    base: torch.nn.Module,
    cells: Sequence[str] = HELD_IN,
    *,
    seed: int,
    head_scope: str = "group",
    regime: Regime = REGIME,
) -> torch.nn.Module:
    """Return a copy of the base trained on all the cells at once, pooled.

    Each image is classified within the head scope of its own cell.
    """
    steps = regime.multitask_steps
    return _train(base, cells, steps=steps, seed=seed, scope=head_scope, regime=regime)


def _train(
    base: torch.nn.Module,
    cells: Sequence[str],
    *,
    steps: int,
    seed: int,
    scope: str,
    regime: Regime,
) -> torch.nn.Module:
    """Train the vision tower under the base's frozen zero-shot head."""
    clip: Any = copy.deepcopy(base).train()
    for parameter in clip.parameters():
        parameter.requires_grad_(False)
    clip.visual.requires_grad_(True)
    with torch.no_grad():
        head = model.zero_shot_head(base)  # (10, WIDTH)
    inputs, labels, masks = _pooled(cells, scope)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        clip.visual.parameters(), lr=regime.rate, weight_decay=0.0
    )
    for pick in _batches(len(labels), regime.batch, steps, generator):
        logits = clip.encode_image(inputs[pick]) @ head.T + masks[pick]  # (b, 10)
        loss = functional.cross_entropy(logits, labels[pick])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
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


def _batches(n: int, size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Cut as many shuffled passes over n items into batches as the steps need."""
    passes = -(-steps * size // n)
    order = [torch.randperm(n, generator=generator) for _ in range(passes)]
    return list(torch.split(torch.cat(order)[: steps * size], size))


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
