"""The embedded language track ``cldr-t5``.

Five tasks on names, dates and numbers of CLDR, in five languages; a small byte-level
T5. Torch, transformers and Babel are imported only where they are needed, so that a
prepared track answers in milliseconds.
"""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk import making
from mtk.errors import UsageError
from mtk_tasks_text.cells import HELD_IN, LONGEST, RANKED, options, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from mtk.tracks import Models

    Report = Callable[[str, float], None]
    Batch = Mapping[str, Tensor]

_HERE = Path(__file__).parent
ASSET = _HERE / "assets" / "base"
# Everything that decides what `prepare` makes; a change of any of it makes new folders
# in the cache instead of using the old ones.
_SOURCES = (
    *("cells.py", "cldr.py", "data.py", "model.py", "recipes.py", "tokens.py"),
    "assets/base/provenance.json",
)
# Items decoded at a time, of like length, so that little is spent on padding.
_BATCH = 40


class CldrT5:
    """One instance of the track: a cache folder and a seed."""

    def __init__(
        self, *, cache: Path, seed: int, options: Mapping[str, object]
    ) -> None:
        """Check the options; nothing is read or made yet.

        Args:
            cache: folder for models; made if it is not there.
            seed: decides the experts and the multitask model, not the base.
            options: there are none.
        """
        if options:
            raise UsageError(f"cldr-t5 has no option {min(options)!r}")
        self.cache = Path(cache)
        self.seed = seed

    def prepare(self, report: Report) -> Models:
        """Make the models, or find them in the cache.

        Args:
            report: told what is going on and the fraction done.

        Returns:
            ``base``, ``experts`` in the order of the held-in cells, and
            ``multitask``: folders in transformers' layout.
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
        """Return the model of a folder, ready to run."""
        from mtk_tasks_text import model

        return model.load(path)

    def data(self, task: str, split: str) -> dict[str, Any]:
        """Return one split of one cell.

        Args:
            task: a cell such as ``date-es``, or an ability.
            split: train, validation or test.

        Returns:
            ``inputs``, with tokens ``source`` ``(n, s)`` and ``target`` ``(n, t)``;
            ``labels``, n strings; ``ids``, n numbers, equal across languages.
        """
        from mtk_tasks_text import data, tokens

        part = data.examples(task, split)
        return {
            "inputs": {
                "source": tokens.encode(part.inputs),
                "target": tokens.encode(part.labels),
            },
            "labels": list(part.labels),
            "ids": list(part.ids),
        }

    def outputs(self, model: nn.Module, task: str, inputs: Batch) -> Tensor:  # noqa: ARG002  all cells have one head
        """Return the scores of every byte of the answers, given the bytes before it.

        Args:
            model: a T5.
            task: a cell.
            inputs: as `data` gives them.

        Returns:
            ``(n, t, vocabulary)``, differentiable in the model.
        """
        from mtk_tasks_text import decoding

        return decoding.logits(model, inputs["source"], inputs["target"])

    def mask(self, task: str, inputs: Batch) -> Tensor:  # noqa: ARG002
        """Return where the answers are, their ends included, bool ``(n, t)``."""
        from mtk_tasks_text.tokens import PAD

        return inputs["target"] != PAD

    def targets(self, task: str, inputs: Batch) -> Tensor:  # noqa: ARG002
        """Return the bytes of the answers, ``(n, t)``."""
        return inputs["target"]

    def gram_mask(self, module_name: str, task: str, inputs: Batch) -> Tensor:
        """Return which rows of a linear layer's input are no padding, bool ``(n, T)``.

        The encoder, and keys and values of cross-attention, read the source; the rest
        of the decoder reads the answer.
        """
        from mtk_tasks_text.tokens import PAD

        crossing = (".EncDecAttention.k", ".EncDecAttention.v")
        if module_name.startswith("encoder.") or any(
            c in module_name for c in crossing
        ):
            return inputs["source"] != PAD
        return self.mask(task, inputs)

    def predict(self, model: nn.Module, task: str, inputs: Batch) -> list[str]:
        """Return the answers of a model: the likeliest option, or greedy decoding."""
        import torch

        from mtk_tasks_text.tokens import PAD

        source = inputs["source"]
        lengths = (source != PAD).sum(dim=1)
        said = [""] * len(source)
        with torch.inference_mode():
            for places in lengths.argsort(stable=True).split(_BATCH):
                part = source[places, : int(lengths[places].max())]
                for place, answer in zip(
                    places.tolist(), _answers(model, task, part), strict=True
                ):
                    said[place] = answer
        return said

    def _save_base(self, folder: Path) -> None:
        """The base in float32; the package carries it in half precision."""
        from mtk_tasks_text import model

        model.save(model.load(ASSET), folder)

    def _train(self, cells: Sequence[str], seed: int, folder: Path) -> None:
        """The expert of one cell, or the multitask model of several."""
        from mtk_tasks_text import model, recipes

        made = recipes.tuned(model.load(ASSET), cells, seed=seed)
        model.save(made, folder)

    @cached_property
    def _folder(self) -> Path:
        sources = (_HERE / name for name in _SOURCES)
        return self.cache / making.fingerprint(sources, version("babel"))


def _answers(model: nn.Module, task: str, source: Tensor) -> Sequence[str]:
    from mtk_tasks_text import decoding, tokens

    kind, language = parse(task)
    if kind in RANKED:
        answers = options(kind, language)
        best = decoding.likelihoods(model, source, answers).argmax(dim=1)
        return [answers[place] for place in best.tolist()]
    return tokens.decode(decoding.greedy(model, source, LONGEST[kind]))
