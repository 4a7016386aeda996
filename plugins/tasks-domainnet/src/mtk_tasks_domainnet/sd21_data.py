"""Images, prompts, noise and judgements of ``domainnet-sd21``, read from the root."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import UsageError
from mtk.randomness import stream
from mtk_tasks_domainnet import diffusion, judge, lists, model_files, pixels, prompts
from mtk_tasks_domainnet.cells import NEUTRAL, Grid
from mtk_tasks_domainnet.clip import class_name
from mtk_tasks_domainnet.clip_data import FOLDER as CLIP_FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtk_tasks_domainnet.sd21_recipes import Part

FOLDER = "stable-diffusion-2-1"
VAE = ("config.json", "diffusion_pytorch_model.safetensors")
LATENTS = Path("mtk") / "latents"
# Real images of a domain that the probe is trained on, and that its ceiling is taken on.
PROBE = {"train": 500, "validation": 200}


class Sd21Data:
    """What a root holds for one grid."""

    def __init__(self, root: Path, grid: Grid) -> None:
        self.root, self.grid, self.folder = root, grid, root / FOLDER

    @cached_property
    def vae(self) -> Any:
        """The autoencoder, which no method merges."""
        return diffusion.load_vae(self.folder)

    @cached_property
    def scheduler(self) -> Any:
        """The schedule of training."""
        return diffusion.load_scheduler(self.folder, sampling=False)

    @cached_property
    def size(self) -> int:
        """Width and height of latents, as the UNet's configuration says."""
        from diffusers import UNet2DConditionModel

        config = UNet2DConditionModel.load_config(
            self.folder / "unet", local_files_only=True
        )
        return int(config["sample_size"])

    @cached_property
    def blank(self) -> Tensor:
        """The empty prompt's states, ``(1, length, width)``."""
        return diffusion.embed(self.folder, [""])

    def texts(self, task: str) -> list[str]:
        """The prompts of a task: one per class of its group, or the neutral ones."""
        if task == NEUTRAL:
            return list(prompts.NEUTRAL)
        domain, group = self.grid.parse(task)
        prompt = prompts.of_domain(domain)
        return [
            prompt.format(class_name(name, "spaces"))
            for name in self.grid.groups[group]
        ]

    def images(self, cell: str, split: str) -> list[lists.Image]:
        """All real images of a cell and split."""
        return lists.of_cell(self.root, self.grid, cell, split)

    def chosen(self, cells: Sequence[str]) -> list[object]:
        """What tells the images and prompts that cells are trained on from others."""
        return [
            [self.texts(cell), pixels.stamps(self.root, self.images(cell, "train"))]
            for cell in cells
        ]

    def turns(self, cell: str, split: str, count: int) -> list[lists.Image]:
        """Some real images of a cell, its classes in turn, as far as they last.

        At most half as many classes as images, evenly spread over the group, so that
        there are two images of every prompt to compare.
        """
        queues: dict[str, list[lists.Image]] = {}
        for image in self.images(cell, split):
            queues.setdefault(image.name, []).append(image)
        _, group = self.grid.parse(cell)
        present = [name for name in self.grid.groups[group] if name in queues]
        order = [present[place] for place in spread(len(present), count)]
        longest = max(map(len, queues.values()), default=0)
        found = [
            queues[name][turn]
            for turn in range(longest)
            for name in order
            if turn < len(queues[name])
        ]
        if not found:
            raise UsageError(f"{cell} has no images in the split {split}")
        return found[:count]

    def latents(self, label: str, images: Sequence[lists.Image]) -> Tensor:
        """Latents of real images, ``(n, c, h, w)``, made on first use."""
        from mtk_tasks_domainnet import computing

        def convert(some: Sequence[lists.Image]) -> Tensor:
            pictures = [pixels.opened(self.root, image) for image in some]
            side = self.size * 2 ** (len(self.vae.config.block_out_channels) - 1)
            batch = torch.stack([_square(picture, side) for picture in pictures])
            with computing.lent(self.vae) as device:
                parts = [
                    diffusion.encode(self.vae, part.to(device))
                    for part in batch.split(4)
                ]
            return torch.cat(parts).cpu()

        return pixels.stored(
            self.root,
            self.root / LATENTS,
            label,
            images,
            shape=(int(self.vae.config.latent_channels), self.size, self.size),
            dtype="float32",
            convert=convert,
            identity=self._vae_hash,
        )

    @cached_property
    def _vae_hash(self) -> str:
        return model_files.hash_of(self.folder / "vae", VAE)

    def training(self, cell: str) -> Part:
        """Everything of a cell's training split."""
        from mtk_tasks_domainnet import sd21_recipes

        images = self.images(cell, "train")
        if not images:
            raise UsageError(f"{cell} has no images in the split train")
        _, group = self.grid.parse(cell)
        names = self.grid.groups[group]
        return sd21_recipes.Part(
            latents=self.latents(f"{cell}-train", images),
            prompts=torch.tensor([names.index(image.name) for image in images]),
            states=diffusion.embed(self.folder, self.texts(cell)),
        )

    def judge_in(self, folder: Path) -> judge.Judge:
        """The judge that was made in a folder."""
        clip_folder = self.root / CLIP_FOLDER
        return judge.load(folder, clip_folder, self.grid.classes, self.grid.domains)

    def opened(self, images: Sequence[lists.Image]) -> list[Any]:
        """Real images as PIL reads them."""
        return [pixels.opened(self.root, image) for image in images]

    def of_domain(self, domain: str, split: str) -> list[lists.Image]:
        """The first real images of a domain's split that the judge is made with."""
        return list(lists.split(self.root, self.grid)[domain, split][: PROBE[split]])


def spread(total: int, count: int) -> list[int]:
    """Which of some prompts ``count`` images have: at most half as many, evenly spread."""
    most = min(total, max(1, count // 2))
    return [place * total // most for place in range(most)]


def items(task: str, split: str, shape: tuple[int, ...], count: int, times: int) -> Any:
    """Noise (n, *shape) and times (n,) of a task's items: the same for all models.

    Times are spread evenly over all, and dealt out by the hash of the item.
    """
    noise = torch.stack(
        [
            torch.randn(shape, generator=stream(0, "noise", task, split, item))
            for item in range(count)
        ]
    )
    order = sorted(range(count), key=lambda item: number("time", task, split, item))
    time = torch.empty(count, dtype=torch.int64)
    time[torch.tensor(order)] = torch.arange(count) * times // count
    return noise, time


def number(kind: str, task: str, split: str, item: int) -> int:
    """A number below 2^53 for one item, which JSON keeps exactly."""
    raw = hashlib.sha256(f"{kind} {task} {split} {item}".encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 11


def _square(image: Any, side: int) -> Tensor:
    """The middle of an image as numbers in -1..1, (3, side, side)."""
    import numpy as np
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    raw = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
    return raw.to(torch.float32) / 127.5 - 1
