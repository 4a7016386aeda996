"""The embedded image generation track ``digits-diffusion``.

A small diffusers UNet draws handwritten digits from two words, the digit and the style.
Torch and diffusers are imported only where they are needed, so that a prepared track
answers in milliseconds.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk_tasks_diffusion import store
from mtk_tasks_diffusion.cells import (
    GROUPS,
    HELD_IN,
    NEUTRAL,
    SPLITS,
    STYLES,
    WORDS,
    parse,
    prompt,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from mtk_tasks_diffusion.judge import Judge
    from mtk_tasks_diffusion.metrics import Generated, Wanted

    Report = Callable[[str, float], None]
    Batch = Mapping[str, Tensor]

_HERE = Path(__file__).parent
ASSET = _HERE / "assets" / "base"
JUDGE = _HERE / "assets" / "judge"
# Everything that decides what `prepare` makes; a change of any of it makes new folders
# in the cache instead of using the old ones.
_SOURCES = (
    *("cells.py", "data.py", "model.py", "recipes.py"),
    "assets/base/provenance.json",
)
# Experts take seeds _SPREAD * seed + cell number; multitask the one after the last.
_SPREAD = 1000
# Images of one cell, so many of each digit in turn. Test decides how wide intervals are.
ITEMS = {"train": 64, "validation": 24, "test": 40}
# Noise that no item has: for the base's own images that neutral prompts are compared to.
_OTHER_NOISE = "other noise"
# First test items of each prompt on a contact sheet.
_SHEET_SPLIT = "test"


class DigitsDiffusion:
    """One instance of the track: a cache folder, a seed and the options."""

    def __init__(
        self, *, cache: Path, seed: int, options: Mapping[str, object]
    ) -> None:
        """Check the options; nothing is read or made yet.

        Args:
            cache: folder for models; made if it is not there.
            seed: decides the experts and the multitask adapter, not the base.
            options: there are none.
        """
        if options:
            raise ValueError(f"digits-diffusion has no option {min(options)!r}")
        self.cache = Path(cache)
        self.seed = seed

    def prepare(self, report: Report) -> Mapping[str, object]:
        """Make the models, or find them in the cache.

        Args:
            report: told what is going on and the fraction done.

        Returns:
            ``base``, a folder in diffusers' layout; ``experts`` in the order of the
            held-in cells and ``multitask``: folders in PEFT's layout.
        """
        base = self._base()
        total = 2 * len(HELD_IN)  # multitask costs about as much as all experts
        experts = []
        for i, cell in enumerate(HELD_IN):
            report(f"training the expert {cell}", i / total)
            experts.append(self._adapter(base, cell, [cell], i))
        report("training the multitask adapter", len(HELD_IN) / total)
        joint = self._adapter(base, "multitask", list(HELD_IN), len(HELD_IN))
        report("models ready", 1.0)
        return {"base": base, "experts": experts, "multitask": joint}

    def build(self, path: Path) -> nn.Module:
        """The UNet of a folder in diffusers' layout, attention visible to hooks."""
        from mtk_tasks_diffusion import model

        return model.load(path)

    def data(self, task: str, split: str) -> dict[str, Any]:
        """Return one split of one cell, or of the neutral prompts.

        Args:
            task: a cell such as ``plain-01``, or ``neutral``.
            split: train, validation or test.

        Returns:
            ``inputs``: ``words`` int64 ``(n, 2)``; ``noise`` ``(n, 1, 8, 8)``, from which
            an image is generated and with which ``image`` is mixed; ``image``
            ``(n, 1, 8, 8)``, a real one; ``time`` ``(n,)``, of the mixture. ``labels``: n
            `Wanted`. ``ids``: a number for each noise, which no two items share.
        """
        if split not in SPLITS:
            raise ValueError(f"no split named {split!r}; the splits are {SPLITS}")
        return self._neutral(split) if task == NEUTRAL else self._cell(task, split)

    def outputs(self, model: nn.Module, task: str, inputs: Batch) -> Tensor:
        """Return the predicted velocity at the inputs' times, ``(n, pixels)``."""
        from mtk_tasks_diffusion import model as models
        from mtk_tasks_diffusion import recipes

        noisy = recipes.mix(inputs["image"], inputs["noise"], inputs["time"])
        return models.velocity(model, noisy, inputs["time"], inputs["words"]).flatten(1)

    def targets(self, task: str, inputs: Batch) -> Tensor:
        """Return the true velocity, ``(n, pixels)``."""
        return (inputs["noise"] - inputs["image"]).flatten(1)

    def predict(self, model: nn.Module, task: str, inputs: Batch) -> list[Generated]:
        """Generate the images of a task, and let the judge look at them."""
        from mtk_tasks_diffusion import model as models
        from mtk_tasks_diffusion.metrics import Generated

        images = models.sample(model, inputs["noise"], inputs["words"])
        seen = self._judge.verdict(images)
        return [
            Generated(
                image=image[0], digit=digit, style=STYLES[style], features=feature
            )
            for image, digit, style, feature in zip(
                images.numpy(),
                seen.digits.tolist(),
                seen.styles.tolist(),
                seen.features.numpy(),
                strict=True,
            )
        ]

    def sheet(self, model: nn.Module) -> bytes:
        """Draw one image of every prompt as a PNG: styles in rows, digits in columns.

        Each is the first test item of its prompt.
        """
        import torch

        from mtk_tasks_diffusion import data, sheet
        from mtk_tasks_diffusion import model as models

        words, noise = [], []
        for style in STYLES:
            for group, digits in GROUPS.items():
                items = range(len(digits))
                words += [prompt(digit, style) for digit in digits]
                noise.append(_noise(f"{style}-{group}", _SHEET_SPLIT, items))
        images = models.sample(model, torch.cat(noise), torch.tensor(words))
        shape = (len(STYLES), 10, data.SIZE, data.SIZE)
        return sheet.draw(images.numpy().reshape(shape))

    def ceiling(self) -> dict[str, dict[str, float]]:
        """How often the judge is right about real test images; see `judge.ceiling`."""
        from mtk_tasks_diffusion import judge

        return judge.ceiling(self._judge)

    @cached_property
    def _judge(self) -> Judge:
        from mtk_tasks_diffusion import judge

        return judge.load(JUDGE)

    def _cell(self, cell: str, split: str) -> dict[str, Any]:
        """Items of a cell: digits in turn, real images in the order of their numbers."""
        import numpy as np
        import torch

        from mtk_tasks_diffusion import data
        from mtk_tasks_diffusion.metrics import Wanted

        style, group = parse(cell)
        pixels, labels, _ = data.of_cell(cell, split)
        digits = GROUPS[group]
        places = [np.flatnonzero(labels == digit) for digit in digits]
        turns = range(ITEMS[split] // len(digits))
        order = [place[turn] for turn in turns for place in places]
        image = torch.from_numpy(pixels[order]).unsqueeze(1)
        words = [prompt(int(digit), style) for digit in labels[order]]
        features = self._judge.verdict(image).features.numpy()
        wanted = [
            Wanted(digit=int(digit), style=style, prompt=_text(word), features=feature)
            for digit, word, feature in zip(labels[order], words, features, strict=True)
        ]
        return _items(cell, split, torch.tensor(words), image, wanted)

    def _neutral(self, split: str) -> dict[str, Any]:
        """Prompts without digit, style or both; compared to what the base makes of them."""
        import torch

        from mtk_tasks_diffusion import data
        from mtk_tasks_diffusion import model as models
        from mtk_tasks_diffusion.metrics import Wanted

        prompts = [prompt(digit, None) for digit in range(10)]
        prompts += [prompt(None, style) for style in STYLES] + [prompt(None, None)]
        number = ITEMS[split]
        words = torch.tensor([prompts[i % len(prompts)] for i in range(number)])
        base = models.load(ASSET)
        first = models.sample(base, _noise(NEUTRAL, split, range(number)), words)
        other = models.sample(base, _noise(_OTHER_NOISE, split, range(number)), words)
        seen, features = self._judge.verdict(first), self._judge.verdict(other).features
        wanted = [
            Wanted(
                digit=int(seen.digits[i]),
                style=STYLES[int(seen.styles[i])],
                prompt=_text(words[i].tolist()),
                features=features[i].numpy(),
            )
            for i in range(number)
        ]
        pixels, _, _ = data.images(STYLES[0], tuple(range(10)), split)
        image = torch.from_numpy(pixels[:number]).unsqueeze(1)
        return _items(NEUTRAL, split, words, image, wanted)

    def _base(self) -> Path:
        """The base in float32; the package carries it in half precision."""

        def make(work: Path) -> dict[str, Any]:
            from mtk_tasks_diffusion import model

            model.save(model.load(ASSET), work / "model")
            return {"track": "digits-diffusion", "made": "base"}

        folder = self._folder("base")
        store.get_or_make(folder, make)
        return folder / "model"

    def _adapter(self, base: Path, name: str, cells: list[str], number: int) -> Path:
        """One trained adapter, as a folder in PEFT's layout."""

        def make(work: Path) -> dict[str, Any]:
            from mtk_tasks_diffusion import model, recipes

            regime = recipes.REGIME
            steps = regime.steps if len(cells) == 1 else regime.multitask_steps
            seed = _SPREAD * self.seed + number
            with _one_thread():
                made = recipes.finetune(model.load(base), cells, steps=steps, seed=seed)
                recipes.save_adapter(made, work / "adapter")
            return {"track": "digits-diffusion", "made": name, "seed": seed}

        folder = self._folder(f"seed{self.seed}") / name
        store.get_or_make(folder, make)
        return folder / "adapter"

    def _folder(self, name: str) -> Path:
        return self.cache / f"digits-diffusion-{_version()}-{name}"


def _items(
    task: str, split: str, words: Tensor, image: Tensor, wanted: list[Wanted]
) -> dict[str, Any]:
    """The inputs, labels and ids of n items; noise and times follow from their names."""
    import torch

    n = len(wanted)
    # Times are spread evenly, and shuffled over the items by their hash.
    order = sorted(range(n), key=lambda item: _hash("time", task, split, item))
    time = torch.empty(n)
    time[torch.tensor(order)] = (torch.arange(n) + 0.5) / n
    return {
        "inputs": {
            "words": words,
            "noise": _noise(task, split, range(n)),
            "image": image,
            "time": time,
        },
        "labels": wanted,
        "ids": [_hash("noise", task, split, item) for item in range(n)],
    }


def _noise(task: str, split: str, items: range) -> Tensor:
    """Noise of some items of a task, ``(n, 1, SIZE, SIZE)``: the same for all models."""
    import torch

    from mtk_tasks_diffusion.data import SIZE

    drawn = []
    for item in items:
        seed = _hash("noise", task, split, item)
        generator = torch.Generator().manual_seed(seed)
        drawn.append(torch.randn(1, SIZE, SIZE, generator=generator))
    return torch.stack(drawn)


def _hash(kind: str, task: str, split: str, item: int) -> int:
    """A number below 2^53 for one item, which JSON keeps exactly."""
    raw = hashlib.sha256(f"{kind} {task} {split} {item}".encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 11


def _text(words: tuple[int, int] | list[int]) -> str:
    return ", ".join(WORDS[word] for word in words if WORDS[word])


@lru_cache(maxsize=1)
def _version() -> str:
    """A short hash of everything that decides the models."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for the length of a block: sums in one order, so equal bytes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
