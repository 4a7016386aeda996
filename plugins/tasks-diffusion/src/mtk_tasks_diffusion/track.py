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
    prompt,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mtk_tasks_diffusion.judge import Judge
    from mtk_tasks_diffusion.metrics import Generated

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


class DigitsDiffusion:
    """One instance of the track: a cache folder, a seed and the options."""

    # The prompt is all that a model needs: ``task`` is part of the contract only.
    # ruff: noqa: ARG002

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
        from mtk_tasks_diffusion import items

        if task == NEUTRAL:
            return items.neutral(split, self._judge, self.build(ASSET))
        return items.of_cell(task, split, self._judge)

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
        """Draw one image of every prompt as a PNG: styles in rows, digits in columns."""
        from mtk_tasks_diffusion import sheet

        return sheet.png(sheet.paint(self.first_images(model)))

    def first_images(self, model: nn.Module) -> NDArray[np.float32]:
        """Generate the first test item of every prompt, ``(styles, 10, s, s)``."""
        import torch

        from mtk_tasks_diffusion import data, items
        from mtk_tasks_diffusion import model as models

        words, noise = [], []
        for style in STYLES:
            for group, digits in GROUPS.items():
                words += [prompt(digit, style) for digit in digits]
                first = range(len(digits))  # digits stand in turn
                noise.append(items.noise(f"{style}-{group}", "test", first))
        images = models.sample(model, torch.cat(noise), torch.tensor(words))
        shape = (len(STYLES), 10, data.SIZE, data.SIZE)
        drawn: NDArray[np.float32] = images.numpy().reshape(shape)
        return drawn

    def ceiling(self) -> dict[str, dict[str, float]]:
        """How often the judge is right about real test images; see `judge.ceiling`."""
        from mtk_tasks_diffusion import judge

        return judge.ceiling(self._judge)

    @cached_property
    def _judge(self) -> Judge:
        from mtk_tasks_diffusion import judge

        return judge.load(JUDGE)

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
