"""Images, labels and heads of ``domainnet-clip``, read from the root."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk_tasks_domainnet import clip, lists
from mtk_tasks_domainnet.cells import CIFAR, Grid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mtk_tasks_domainnet.clip_recipes import Part

FOLDER = "ViT-B-32-laion2b_s34b_b79k"
ABILITY = Path("ability") / CIFAR
PIXELS = Path("mtk") / "pixels"
# Of every ten images of base ability, in the order of their names.
_ABILITY = {"validation": (0, 1), "train": (2,), "test": (3, 4, 5, 6, 7, 8, 9)}
_ABILITY_NUMBER = 10**8  # ids of these images begin here


def folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


class ClipData:
    """What a root holds for one grid; ``names`` says how prompts write the classes."""

    def __init__(self, root: Path, grid: Grid, names: str) -> None:
        self.root, self.grid, self.names = root, grid, names
        self.folder = root / FOLDER

    @cached_property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """Whole numbers -> what the model takes."""
        return clip.normaliser(self.folder)

    def rows(self, task: str, scope: str) -> Sequence[str]:
        """The classes that the head of a task tells apart."""
        if task == CIFAR:
            return folders(self.root / ABILITY)
        return self.grid.head(self.grid.parse(task)[1], scope)

    def canonical(self, task: str, scope: str) -> Tensor:
        """For every row of a head, the first row of the same class, ``(rows,)``."""
        import torch

        if task != CIFAR and scope == "joint":
            return torch.tensor(self.grid.canonical)
        return torch.arange(len(self.rows(task, scope)))

    def head(self, task: str, scope: str) -> Tensor:
        """The head of a task, ``(rows, width)``."""
        rows = self.rows(task, scope)
        return self._embeddings[[self._names.index(name) for name in rows]]

    def images(self, task: str, split: str) -> list[lists.Image]:
        """The images of one split of a task."""
        if task != CIFAR:
            return lists.of_cell(self.root, self.grid, task, split)
        found = sorted(
            path.relative_to(self.root).as_posix()
            for path in (self.root / ABILITY).glob("*/*")
            if path.is_file()
        )
        return [
            lists.Image(path, path.split("/")[-2], _ABILITY_NUMBER + number)
            for number, path in enumerate(found)
            if number % 10 in _ABILITY[split]
        ]

    def labelled(self, task: str, split: str, scope: str) -> Part:
        """Images of a split, and rows of the head of this scope."""
        import torch

        from mtk_tasks_domainnet import clip_recipes

        images = self.images(task, split)
        if not images:
            raise UsageError(f"{task} has no images in the split {split}")
        names = list(self.rows(task, scope))
        return clip_recipes.Part(
            images=self._pixels(task, split, images),
            labels=torch.tensor([names.index(image.name) for image in images]),
            canonical=self.canonical(task, scope),
        )

    def chosen(self, cells: Sequence[str]) -> list[object]:
        """What tells the images that cells are trained and validated on from others."""
        from mtk_tasks_domainnet import pixels

        return [
            pixels.stamps(self.root, self.images(cell, split))
            for cell in cells
            for split in ("train", "validation")
        ]

    def _pixels(self, task: str, split: str, images: Sequence[lists.Image]) -> Tensor:
        import torch

        from mtk_tasks_domainnet import pixels

        transform, size = clip.whole_numbers(self.folder), clip.image_size(self.folder)
        return pixels.stored(
            self.root,
            self.root / PIXELS,
            f"{task}-{split}",
            images,
            shape=(3, size, size),
            dtype="uint8",
            convert=lambda some: torch.stack(
                [transform(pixels.opened(self.root, image)) for image in some]
            ),
            identity=clip.config_of(self.folder).get("preprocess_cfg"),
        )

    @cached_property
    def _names(self) -> list[str]:
        """Every class once: of the grid, then of base ability."""
        both = [*self.grid.rows, *folders(self.root / ABILITY)]
        return list(dict.fromkeys(both))

    @cached_property
    def _embeddings(self) -> Tensor:
        return clip.head(clip.load(self.folder), self._names, self.names, self.folder)
