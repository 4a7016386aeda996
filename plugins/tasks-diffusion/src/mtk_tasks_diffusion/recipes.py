"""How the base, the experts and the multitask model of ``digits-diffusion`` are made.

Every function is deterministic in its seed on one thread; the callers see to the thread
count. What an adapter sees follows from the seed and the number of the step. The base, whose
bytes are shipped, is still trained with the one generator that made it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from mtk import training
from mtk.randomness import stream
from mtk_tasks_diffusion import data, model
from mtk_tasks_diffusion.cells import BLANK, STYLES, WORDS, parse, prompt
from mtk_tasks_diffusion.items import real

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    Report = Callable[[str, float], None]

# PEFT reads a string as a pattern; a list would be stored in a random order.
TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0)"
# AdamW's own, with which the base was pre-trained.
_DECAY = 0.01
_CARD = """---
library_name: peft
tags: [lora]
---

A LoRA adapter of the base of mtk's track `digits-diffusion`, trained by
`mtk_tasks_diffusion.recipes.tuned` on scikit-learn's digits.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """The numbers that decide how hard the track is.

    Attributes:
        pretrain_steps: steps of the base.
        pretrain_rate: its peak learning rate.
        pretrain_batch: its images per step.
        wrong: share of prompt words that are replaced by random ones of their kind, so
            that the base knows every word faintly.
        blank: share of prompt words that are left out, for the base only.
        steps: steps of one expert.
        rate: peak learning rate of adapters.
        multitask_steps: steps of the multitask adapter over all held-in cells.
        batch: images per step of adapters.
        rank: of every adapter; its alpha is the same number, so that the scale is 1.
    """

    pretrain_steps: int = 3000
    pretrain_rate: float = 3e-3
    pretrain_batch: int = 128
    wrong: float = 0.6
    blank: float = 0.1
    steps: int = 60
    rate: float = 1e-2
    multitask_steps: int = 180
    batch: int = 48
    rank: int = 8


REGIME = Regime()


def pretrain(
    seed: int, regime: Regime = REGIME, report: Report | None = None
) -> nn.Module:
    """Train the base on the whole grid, with most of its prompts partly wrong."""
    unet = model.build(seed).train()
    generator = torch.Generator().manual_seed(seed)
    images, digits, styles = real("train")
    steps, peak = regime.pretrain_steps, regime.pretrain_rate
    numbers = training.Regime(
        rate=peak,
        batch=regime.pretrain_batch,
        steps=steps,
        seed=seed,
        decay=_DECAY,
        clip=1.0,
    )

    def loss(_: int) -> Tensor:
        pick = torch.randint(len(images), (numbers.batch,), generator=generator)
        words = torch.stack(
            [
                _faint(digits[pick], 10, 0, regime, generator),
                _faint(styles[pick], len(STYLES), 10, regime, generator),
            ],
            dim=1,
        )  # (b, 2)
        return flow_loss(unet, images[pick], words, generator)

    training.fit(
        dict(unet.named_parameters()),
        loss,
        numbers,
        report=report,
        schedule=lambda optimiser: OneCycleLR(optimiser, peak, total_steps=steps),
    )
    return unet.eval()


def tuned(
    base: nn.Module, cells: Sequence[str], *, seed: int, regime: Regime = REGIME
) -> Any:
    """Train a LoRA adapter of the base: an expert of one cell, or a multitask adapter.

    Returns:
        PEFT's model, around a copy of the base.
    """
    import peft

    config = peft.LoraConfig(
        r=regime.rank, lora_alpha=regime.rank, target_modules=TARGETS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = peft.get_peft_model(copy.deepcopy(base), config).train()
    images, words = _of_cells(cells)
    steps = regime.steps if len(cells) == 1 else regime.multitask_steps
    numbers = training.Regime(
        rate=regime.rate, batch=regime.batch, steps=steps, seed=seed
    )

    def loss(step: int) -> Tensor:
        pick = training.items(len(images), step, numbers)
        noise = stream(seed, "noise", step)
        return flow_loss(adapted, images[pick], words[pick], noise)

    training.fit(
        {n: p for n, p in adapted.named_parameters() if p.requires_grad},
        loss,
        numbers,
        schedule=lambda optimiser: CosineAnnealingLR(optimiser, steps),
    )
    return adapted.eval()


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write an adapter as PEFT's folder: configuration and safetensors."""
    adapted.save_pretrained(str(folder))
    # In place of PEFT's, which is a form to fill in.
    (folder / "README.md").write_text(_CARD, encoding="utf-8")


def flow_loss(
    unet: nn.Module, images: Tensor, words: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity at random times, of images ``(n, 1, s, s)``."""
    noise = torch.randn(images.shape, generator=generator)
    time = torch.rand(len(images), generator=generator)
    noisy = mix(images, noise, time)
    predicted = model.velocity(unet, noisy, time, words)
    return functional.mse_loss(predicted, noise - images)


def mix(images: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """``(1 - t) x + t e`` for images and noise ``(n, 1, s, s)``, times ``(n,)``."""
    t = time[:, None, None, None]
    return (1 - t) * images + t * noise


def _faint(
    labels: Tensor, kinds: int, first: int, regime: Regime, generator: torch.Generator
) -> Tensor:
    """Words ``first + label``, some of them random and some blank."""
    n = len(labels)
    chance = torch.rand(2, n, generator=generator)
    other = torch.randint(kinds, (n,), generator=generator)
    words = first + torch.where(chance[0] < regime.wrong, other, labels)
    blank = torch.full_like(words, WORDS.index(BLANK))
    return torch.where(chance[1] < regime.blank, blank, words)


def _of_cells(cells: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Training images of some cells ``(n, 1, s, s)`` and their prompts ``(n, 2)``."""
    images, words = [], []
    for cell in cells:
        style, _ = parse(cell)
        pixels, labels, _ = data.of_cell(cell, "train")
        images.append(torch.from_numpy(pixels).unsqueeze(1))
        words += [prompt(int(digit), style) for digit in labels]
    return torch.cat(images), torch.tensor(words)
