"""The embedded image generation track ``digits-diffusion``.

A small diffusers UNet draws handwritten digits from two words, the digit and the style.
Torch and diffusers are imported only where they are needed, so that a prepared track
answers in milliseconds.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk import making
from mtk_tasks_diffusion.cells import (
    DIGIT_NAMES,
    GROUPS,
    HELD_IN,
    NEUTRAL,
    SPLITS,
    STYLES,
    prompt,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mtk.images import Generated
    from mtk.tracks import Models
    from mtk_tasks_diffusion.judge import Judge

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

    def prepare(self, report: Report) -> Models:
        """Make the models, or find them in the cache.

        Args:
            report: told what is going on and the fraction done.

        Returns:
            ``base``, a folder in diffusers' layout; ``experts`` in the order of the
            held-in cells and ``multitask``: folders in PEFT's layout.
        """
        return making.make_models(
            self._folder,
            HELD_IN,
            seed=self.seed,
            base=self._save_base,
            train=self._train,
            report=report,
        )

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
        from mtk.images import Generated
        from mtk_tasks_diffusion import model as models

        images = models.sample(model, inputs["noise"], inputs["words"])
        seen = self._judge.verdict(images)
        return [
            Generated(
                category=DIGIT_NAMES[digit], domain=STYLES[style], features=feature
            )
            for digit, style, feature in zip(
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

    def notes(self) -> list[str]:
        """How often the judge is right at best, for the table."""
        reached = self.ceiling()["all"]
        shares = ", ".join(f"{name} {100 * v:.1f}" for name, v in reached.items())
        return [f"The judge alone, on real test images, in %: {shares}."]

    @cached_property
    def _judge(self) -> Judge:
        from mtk_tasks_diffusion import judge

        return judge.load(JUDGE)

    def _save_base(self, folder: Path) -> None:
        """The base in float32; the package carries it in half precision."""
        from mtk_tasks_diffusion import model

        model.save(model.load(ASSET), folder)

    def _train(self, cells: Sequence[str], seed: int, folder: Path) -> None:
        """The expert of one cell, or the multitask model of several."""
        from mtk_tasks_diffusion import model, recipes

        made = recipes.tuned(model.load(ASSET), cells, seed=seed)
        recipes.save_adapter(made, folder)

    @cached_property
    def _folder(self) -> Path:
        return self.cache / making.fingerprint(_HERE / name for name in _SOURCES)
