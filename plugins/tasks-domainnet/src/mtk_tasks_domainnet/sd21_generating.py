"""Items, predictions and pictures of ``domainnet-sd21``."""

from __future__ import annotations

import io
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from mtk.images import Generated, Wanted
from mtk_tasks_domainnet import computing, diffusion
from mtk_tasks_domainnet.cells import NEUTRAL
from mtk_tasks_domainnet.sd21_data import items, number, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mtk_tasks_domainnet.judge import Judge
    from mtk_tasks_domainnet.sd21_data import Sd21Data

_BATCH = 8  # images that are generated together
_OTHER = "other noise"
_SPLIT = "test"  # of the pictures on a contact sheet
_THUMB = 128


class Generator:
    """Everything that is generated and looked at, for one root and set of options."""

    def __init__(
        self, data: Sd21Data, judge_folder: Path, options: Mapping[str, Any]
    ) -> None:
        self._data, self._folder, self._options = data, judge_folder, options
        self._states: dict[str, Tensor] = {}

    @cached_property
    def judge(self) -> Judge:
        """The judge."""
        return self._data.judge_in(self._folder)

    def items(self, task: str, split: str, count: int) -> dict[str, Any]:
        """Inputs, labels and ids of a task's split."""
        if task == NEUTRAL:
            return self._neutral(split, count)
        data = self._data
        images = data.turns(task, split, count)
        features = _scaled(self.judge.features(data.opened(images)))
        domain, group = data.grid.parse(task)
        names, texts = data.grid.groups[group], data.texts(task)
        prompt = [names.index(image.name) for image in images]
        return self._put_together(
            task,
            split,
            latents=data.latents(f"{task}-{split}-{len(images)}", images),
            prompt=torch.tensor(prompt),
            wanted=[
                Wanted(
                    category=image.name,
                    domain=domain,
                    prompt=texts[place],
                    features=feature,
                )
                for image, place, feature in zip(images, prompt, features, strict=True)
            ],
        )

    def _neutral(self, split: str, count: int) -> dict[str, Any]:
        """Neutral prompts, compared to what the base makes of them."""
        data = self._data
        shape = (count, int(data.vae.config.latent_channels), data.size, data.size)
        texts = data.texts(NEUTRAL)
        chosen = torch.tensor(spread(len(texts), count))
        prompt = chosen[torch.arange(count) % len(chosen)]
        base = diffusion.load_unet(data.folder / "unet")
        own, others = (
            self._seen(self.images(base, NEUTRAL, noise, prompt), data.grid.classes)
            for noise, _ in (
                items(kind, split, shape[1:], count, count)
                for kind in (NEUTRAL, _OTHER)
            )
        )
        wanted = [
            Wanted(
                category=twin.category,
                domain=twin.domain,
                prompt=texts[place],
                features=other.features,
                twin=twin.features,
            )
            for place, twin, other in zip(prompt.tolist(), own, others, strict=True)
        ]
        # There are no real images of these prompts: the mixture is noise alone.
        return self._put_together(
            NEUTRAL, split, latents=torch.zeros(shape), prompt=prompt, wanted=wanted
        )

    def _put_together(
        self,
        task: str,
        split: str,
        *,
        latents: Tensor,
        prompt: Tensor,
        wanted: list[Wanted],
    ) -> dict[str, Any]:
        count = len(wanted)
        times = int(self._data.scheduler.config.num_train_timesteps)
        noise, time = items(task, split, tuple(latents.shape[1:]), count, times)
        return {
            "inputs": {
                "latents": latents,
                "noise": noise,
                "time": time,
                "prompt": prompt,
            },
            "labels": wanted,
            "ids": [number("noise", task, split, item) for item in range(count)],
        }

    def predicted(self, model: Any, task: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """The UNet's prediction, ``(n, numbers)``."""
        states = self._of_prompts(task)[inputs["prompt"]]
        latents, noise, time = inputs["latents"], inputs["noise"], inputs["time"]
        scheduler = self._data.scheduler
        found = diffusion.predicted(model, scheduler, latents, noise, time, states)
        return found.flatten(1)

    def targets(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What it should be, ``(n, numbers)``."""
        latents, noise, time = inputs["latents"], inputs["noise"], inputs["time"]
        return diffusion.target(self._data.scheduler, latents, noise, time).flatten(1)

    def judged(
        self, model: Any, task: str, inputs: Mapping[str, Tensor]
    ) -> list[Generated]:
        """What the judge says about the images of a task."""
        data = self._data
        among = data.grid.classes
        if self._options["head_scope"] == "group" and task != NEUTRAL:
            among = data.grid.groups[data.grid.parse(task)[1]]
        made = self.images(model, task, inputs["noise"], inputs["prompt"])
        return self._seen(made, among)

    def _seen(self, images: Tensor, among: Sequence[str]) -> list[Generated]:
        """What the judge says about some images, of classes ``among``."""
        features = self.judge.features(_pictures(images))
        return [
            Generated(category=category, domain=domain, features=feature)
            for category, domain, feature in zip(
                self.judge.categories(features, among),
                self.judge.seen_domains(features),
                _scaled(features),
                strict=True,
            )
        ]

    def images(self, model: Any, task: str, noise: Tensor, prompt: Tensor) -> Tensor:
        """Generate images, uint8 ``(n, 3, s, s)``."""
        data = self._data
        scheduler = diffusion.load_scheduler(data.folder, sampling=True)
        states, found = self._of_prompts(task), []
        with computing.lent(model) as device, computing.lent(data.vae):
            for start in range(0, len(noise), _BATCH):
                part = slice(start, start + _BATCH)
                latents = diffusion.sample(
                    model,
                    scheduler,
                    noise[part].to(device),
                    states[prompt[part]].to(device),
                    data.blank.to(device),
                    steps=int(self._options["steps"]),
                    guidance=float(self._options["guidance"]),
                )
                found += [diffusion.decode(data.vae, one) for one in latents.split(1)]
        return torch.cat(found)

    def sheet(self, model: Any) -> bytes:
        """The first test image of every held-in cell, one row per domain."""
        from PIL import Image

        data = self._data
        run = len(data.grid.held_in) // len(data.grid.domains)
        shape = (int(data.vae.config.latent_channels), data.size, data.size)
        page = Image.new("RGB", (_THUMB * run, _THUMB * len(data.grid.domains)))
        for place, cell in enumerate(data.grid.held_in):
            noise, _ = items(cell, _SPLIT, shape, 1, 1)
            first = data.turns(cell, _SPLIT, 1)[0]
            names = data.grid.groups[data.grid.parse(cell)[1]]
            prompt = torch.tensor([names.index(first.name)])
            (picture,) = _pictures(self.images(model, cell, noise, prompt))
            thumb = picture.resize((_THUMB, _THUMB))
            page.paste(thumb, (_THUMB * (place % run), _THUMB * (place // run)))
        out = io.BytesIO()
        page.save(out, "PNG")
        return out.getvalue()

    def _of_prompts(self, task: str) -> Tensor:
        """States of a task's prompts, ``(k, length, width)``; of the last few tasks."""
        if task not in self._states:
            while len(self._states) >= 4:
                del self._states[next(iter(self._states))]
            texts = self._data.texts(task)
            self._states[task] = diffusion.embed(self._data.folder, texts)
        return self._states[task]


def _scaled(features: Tensor) -> NDArray[np.float32]:
    """Features of length 1, ``(n, d)``, at the length ``sqrt(d)`` that metrics want."""
    found: NDArray[np.float32] = (features * features.shape[1] ** 0.5).numpy()
    return found


def _pictures(images: Tensor) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
