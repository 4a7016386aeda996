"""The judge: a small classifier of digit and style, trained on real images only.

One network with two heads. Its last hidden layer gives the features of KID and
diversity. It never sees a generated image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from mtk import training
from mtk_tasks_diffusion import data
from mtk_tasks_diffusion.cells import STYLES
from mtk_tasks_diffusion.items import real

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS_NAME = "judge.safetensors"
FEATURES = 64
_HIDDEN = 256
_STEPS, _BATCH, _RATE, _DECAY = 1500, 128, 2e-3, 0.05
# Generated images are never quite clean.
_NOISE = 0.15
# Of the length of features, in case that all are zero.
_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge says about n images.

    Attributes:
        digits: the most likely digit, ``(n,)``.
        styles: the position in ``STYLES`` of the most likely style, ``(n,)``.
        features: the last hidden layer at length sqrt(FEATURES), ``(n, FEATURES)``.
    """

    digits: Tensor
    styles: Tensor
    features: Tensor


class Judge(nn.Module):
    """Pixels to features to two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Flatten(), nn.Linear(data.SIZE**2, _HIDDEN), nn.ReLU()),
            *(nn.Linear(_HIDDEN, FEATURES), nn.ReLU()),
        )
        self.digit = nn.Linear(FEATURES, 10)
        self.style = nn.Linear(FEATURES, len(STYLES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features and the logits of both heads, of images ``(n, 1, SIZE, SIZE)``."""
        features = self.body(images)
        return features, self.digit(features), self.style(features)

    def verdict(self, images: Tensor) -> Verdict:
        """Classify images ``(n, 1, SIZE, SIZE)``."""
        with torch.inference_mode():
            features, digits, styles = self(images)
            length = features.square().mean(1, keepdim=True).sqrt().clamp_min(_EPS)
        return Verdict(
            digits=digits.argmax(1), styles=styles.argmax(1), features=features / length
        )


def train(seed: int, steps: int = _STEPS) -> Judge:
    """Train a judge on the real training images of all cells."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
    generator = torch.Generator().manual_seed(seed)
    images, digits, styles = real("train")
    numbers = training.Regime(
        rate=_RATE, batch=_BATCH, steps=steps, seed=seed, decay=_DECAY
    )

    def loss(_: int) -> Tensor:
        pick = torch.randint(len(images), (_BATCH,), generator=generator)
        batch = images[pick]
        noise = torch.randn(batch.shape, generator=generator)
        _features, digit, style = judge(batch + _NOISE * noise)
        wrong = functional.cross_entropy(digit, digits[pick])
        return wrong + functional.cross_entropy(style, styles[pick])

    training.fit(
        dict(judge.named_parameters()),
        loss,
        numbers,
        schedule=lambda optimiser: OneCycleLR(optimiser, _RATE, total_steps=steps),
    )
    return judge.eval()


def ceiling(judge: Judge, split: str = "test") -> dict[str, dict[str, float]]:
    """How often the judge is right about real images that it was not trained on.

    Returns:
        For every style and for ``all``: ``category``, ``domain`` and ``joint``.
    """
    images, digits, styles = real(split)
    verdict = judge.verdict(images)
    right = {
        "category": verdict.digits == digits,
        "domain": verdict.styles == styles,
        "joint": (verdict.digits == digits) & (verdict.styles == styles),
    }
    masks = {style: styles == position for position, style in enumerate(STYLES)}
    masks["all"] = torch.ones_like(styles, dtype=torch.bool)
    return {
        name: {kind: hits[mask].double().mean().item() for kind, hits in right.items()}
        for name, mask in masks.items()
    }


def save(judge: Judge, folder: Path) -> None:
    """Write the weights of a judge."""
    from safetensors.torch import save as encoded

    folder.mkdir(parents=True, exist_ok=True)
    content = encoded(judge.state_dict(), metadata={"format": "pt"})
    (folder / WEIGHTS_NAME).write_bytes(content)


def load(folder: Path) -> Judge:
    """Read a judge that `save` wrote."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict(load_file(str(folder / WEIGHTS_NAME)))
    return judge.eval()
