"""The embedded image classification track ``digits-clip``.

Handwritten digits in six visual styles and two groups; a small open_clip CLIP whose
frozen text tower gives the zero-shot head. Torch and open_clip are imported only
where they are needed, so that a prepared track answers in milliseconds.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk import making
from mtk_tasks_vision.cells import HEAD_SCOPES, HELD_IN, SPLITS, classes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from mtk.tracks import Models

    Report = Callable[[str, float], None]

# The cell of base ability: see mtk_tasks_vision.ability.
PRINTED = "printed"
_HERE = Path(__file__).parent
ASSET = _HERE / "assets" / "base"
# Everything that decides what `prepare` makes; a change of any of it makes a new
# folder in the cache instead of using the old one.
_SOURCES = (
    *("cells.py", "data.py", "model.py", "recipes.py"),
    "assets/base/provenance.json",
)
_BATCH = 128  # images per forward pass of `predict`; larger was not faster


class DigitsClip:
    """One instance of the track: a cache folder, a seed and the options."""

    def __init__(
        self, *, cache: Path, seed: int, options: Mapping[str, object]
    ) -> None:
        """Check the options; nothing is read or made yet.

        Args:
            cache: folder for models; made if it is not there.
            seed: decides the experts and the multitask model, not the base.
            options: ``head_scope``, *group* (five classes) or *joint* (ten).
        """
        unknown = set(options) - {"head_scope"}
        if unknown:
            raise ValueError(f"digits-clip has no option {min(unknown)!r}")
        scope = options.get("head_scope", "group")
        if scope not in HEAD_SCOPES:
            raise ValueError(f"head_scope is {scope!r}; it may be {HEAD_SCOPES}")
        self.cache = Path(cache)
        self.seed = seed
        self.head_scope = str(scope)
        self._head: Tensor | None = None

    def prepare(self, report: Report) -> Models:
        """Make the models, or find them in the cache.

        Args:
            report: told what is going on and the fraction done.

        Returns:
            ``base``, ``experts`` in the order of the held-in cells, and
            ``multitask``: folders in open_clip's layout.
        """
        return making.make_models(
            self._folder,
            HELD_IN,
            seed=self.seed,
            base=self._save_base,
            train=self._train,
            report=report,
            variant=f"{self.head_scope}-",
        )

    def data(self, task: str, split: str) -> dict[str, Any]:
        """Return one split of one cell.

        Args:
            task: a cell such as ``plain-low``, or ``printed``.
            split: train, validation or test.

        Returns:
            ``inputs`` float32 ``(n, 3, 16, 16)``; ``labels`` int64 ``(n,)``, positions
            among the classes of the head; ``ids``, n image numbers, equal across
            styles, for resampling by image.
        """
        if split not in SPLITS:
            raise ValueError(f"no split named {split!r}; the splits are {SPLITS}")
        import torch

        from mtk_tasks_vision import ability, data

        if task == PRINTED:
            inputs, labels = ability.examples(split)
            return {"inputs": inputs, "labels": labels, "ids": list(range(len(labels)))}
        part = data.examples(task, split)
        position = torch.zeros(10, dtype=torch.int64)
        known = self.classes(task)
        position[list(known)] = torch.arange(len(known))
        return {
            "inputs": torch.from_numpy(part.inputs),
            "labels": position[torch.from_numpy(part.labels)],
            "ids": part.ids.tolist(),
        }

    def classes(self, task: str) -> tuple[int, ...]:
        """Return the digits that the head of a cell tells apart, in order."""
        if task == PRINTED:
            return tuple(range(10))
        return classes(task, self.head_scope)

    def outputs(self, model: nn.Module, task: str, inputs: Tensor) -> Tensor:
        """Return the zero-shot logits of images, differentiable in the model.

        Args:
            model: anything with ``encode_image``.
            task: a cell; it decides the classes.
            inputs: normalised images, ``(n, 3, 16, 16)``.

        Returns:
            ``(n, classes)``.
        """
        encoder: Any = model
        embeddings: Tensor = encoder.encode_image(inputs)  # (n, width)
        head = self._text_head()[list(self.classes(task))]
        return embeddings @ head.to(embeddings).T

    def predict(self, model: nn.Module, task: str, inputs: Tensor) -> list[int]:
        """Return the position of each image's best class, as `data` labels them."""
        import torch

        with torch.inference_mode():
            return [
                label
                for batch in torch.split(inputs, _BATCH)
                for label in self.outputs(model, task, batch).argmax(dim=1).tolist()
            ]

    def _text_head(self) -> Tensor:
        """The base's text embeddings of the ten digits, ``(10, width)``."""
        if self._head is None:
            import torch

            from mtk_tasks_vision import model

            with torch.no_grad():
                self._head = model.zero_shot_head(model.load(ASSET))
        return self._head

    def _save_base(self, folder: Path) -> None:
        """The base in float32; the package carries it in half precision."""
        from mtk_tasks_vision import model

        model.save(model.load(ASSET), folder)

    def _train(self, cells: Sequence[str], seed: int, folder: Path) -> None:
        """The expert of one cell, or the multitask model of several."""
        from mtk_tasks_vision import model, recipes

        made = recipes.tuned(
            model.load(ASSET), cells, seed=seed, head_scope=self.head_scope
        )
        model.save(made, folder)

    @cached_property
    def _folder(self) -> Path:
        return self.cache / making.fingerprint(_HERE / name for name in _SOURCES)
