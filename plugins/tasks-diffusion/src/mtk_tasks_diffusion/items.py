"""The items of a task: prompts, noise, real images and what the metrics compare with.

Noise and times follow from the task, the split and the number of the item alone, so
that every model of every method and seed is given the same.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mtk.images import Wanted
from mtk_tasks_diffusion import data, model
from mtk_tasks_diffusion.cells import (
    DIGIT_NAMES,
    GROUPS,
    NEUTRAL,
    STYLES,
    WORDS,
    parse,
    prompt,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from mtk_tasks_diffusion.judge import Judge

# Items of a task. Test decides how wide intervals are.
ITEMS = {"train": 64, "validation": 24, "test": 40}
# Six of every neutral prompt, in every split.
NEUTRAL_ITEMS = 96
# Noise that no item has: for the base's own images that neutral prompts are compared to.
_OTHER_NOISE = "other noise"


def real(split: str) -> tuple[Tensor, Tensor, Tensor]:
    """All real images of a split in all styles.

    Returns:
        Images ``(n, 1, s, s)``; digits and positions in ``STYLES``, ``(n,)``.
    """
    images, digits, styles = [], [], []
    for position, style in enumerate(STYLES):
        pixels, labels, _ = data.images(style, tuple(range(10)), split)
        images.append(torch.from_numpy(pixels).unsqueeze(1))
        digits.append(torch.from_numpy(labels))
        styles.append(torch.full((len(labels),), position))
    return torch.cat(images), torch.cat(digits), torch.cat(styles)


def of_cell(cell: str, split: str, judge: Judge) -> dict[str, Any]:
    """Items of a cell: its digits in turn, each with real images in their order."""
    style, group = parse(cell)
    pixels, labels, _ = data.of_cell(cell, split)
    digits = GROUPS[group]
    places = [np.flatnonzero(labels == digit) for digit in digits]
    turns = range(ITEMS[split] // len(digits))
    order = [place[turn] for turn in turns for place in places]
    image = torch.from_numpy(pixels[order]).unsqueeze(1)
    words = [prompt(int(digit), style) for digit in labels[order]]
    features = judge.verdict(image).features.numpy()
    wanted = [
        Wanted(
            category=DIGIT_NAMES[digit],
            domain=style,
            prompt=_text(word),
            features=feature,
        )
        for digit, word, feature in zip(labels[order], words, features, strict=True)
    ]
    return _items(cell, split, torch.tensor(words), image, wanted)


def neutral(split: str, judge: Judge, base: nn.Module) -> dict[str, Any]:
    """Prompts without digit, style or both; compared to what the base makes of them."""
    prompts = [prompt(digit, None) for digit in range(10)]
    prompts += [prompt(None, style) for style in STYLES] + [prompt(None, None)]
    numbers = range(NEUTRAL_ITEMS)
    words = torch.tensor([prompts[i % len(prompts)] for i in numbers])
    seen = judge.verdict(model.sample(base, noise(NEUTRAL, split, numbers), words))
    others = model.sample(base, noise(_OTHER_NOISE, split, numbers), words)
    features = judge.verdict(others).features.numpy()
    twins = seen.features.numpy()
    wanted = [
        Wanted(
            category=DIGIT_NAMES[seen.digits[i]],
            domain=STYLES[seen.styles[i]],
            prompt=_text(words[i].tolist()),
            features=features[i],
            twin=twins[i],
        )
        for i in numbers
    ]
    pixels, _, _ = data.images(STYLES[0], tuple(range(10)), split)
    image = torch.from_numpy(pixels[: len(numbers)]).unsqueeze(1)
    return _items(NEUTRAL, split, words, image, wanted)


def noise(task: str, split: str, items: Iterable[int]) -> Tensor:
    """The noise of some items of a task, ``(n, 1, s, s)``."""
    drawn = []
    for item in items:
        seed = _number("noise", task, split, item)
        generator = torch.Generator().manual_seed(seed)
        drawn.append(torch.randn(1, data.SIZE, data.SIZE, generator=generator))
    return torch.stack(drawn)


def _items(
    task: str, split: str, words: Tensor, image: Tensor, wanted: Sequence[Wanted]
) -> dict[str, Any]:
    """Inputs, labels and ids of n items."""
    n = len(wanted)
    # Times are spread evenly, and dealt to the items in the order of their hashes.
    order = sorted(range(n), key=lambda item: _number("time", task, split, item))
    time = torch.empty(n)
    time[torch.tensor(order)] = (torch.arange(n) + 0.5) / n
    return {
        "inputs": {
            "words": words,
            "noise": noise(task, split, range(n)),
            "image": image,
            "time": time,
        },
        "labels": list(wanted),
        "ids": [_number("noise", task, split, item) for item in range(n)],
    }


def _number(kind: str, task: str, split: str, item: int) -> int:
    """A number below 2^53 for one item, which JSON keeps exactly."""
    raw = hashlib.sha256(f"{kind} {task} {split} {item}".encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 11


def _text(words: Sequence[int]) -> str:
    return ", ".join(WORDS[word] for word in words if WORDS[word])
