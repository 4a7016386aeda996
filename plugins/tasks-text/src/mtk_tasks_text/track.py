"""The embedded language track ``cldr-t5``.

Five tasks on names, dates and numbers of CLDR, in five languages; a small byte-level
T5. Torch, transformers and Babel are imported only where they are needed, so that a
prepared track answers in milliseconds.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk_tasks_text import store
from mtk_tasks_text.cells import HELD_IN, LONGEST, RANKED, options, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

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
# Experts take seeds _SPREAD * seed + cell number; multitask the one after the last.
_SPREAD = 1000
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

    def prepare(self, report: Report) -> dict[str, Any]:
        """Make the models, or find them in the cache.

        Args:
            report: told what is going on and the fraction done.

        Returns:
            ``base``, ``experts`` in the order of the held-in cells, and
            ``multitask``: folders in transformers' layout.
        """
        base = self._base()
        # The multitask model costs about as much as all experts together.
        total = 2 * len(HELD_IN)
        experts = []
        for index, cell in enumerate(HELD_IN):
            report(f"training the expert {cell}", index / total)
            experts.append(self._trained(base, cell, index))
        report("training the multitask model", len(HELD_IN) / total)
        joint = self._trained(base, "multitask", len(HELD_IN))
        report("models ready", 1.0)
        return {"base": base, "experts": experts, "multitask": joint}

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

    def _base(self) -> Path:
        """The base in float32; the package carries it in half precision."""

        def make(work: Path) -> None:
            from mtk_tasks_text import model

            model.save(model.load(ASSET), work)

        return store.get_or_make(self._folder("base"), {"made": "base"}, make)

    def _trained(self, base: Path, cell: str, index: int) -> Path:
        """The expert of a cell, or the multitask model."""

        def make(work: Path) -> None:
            from mtk_tasks_text import model, recipes

            seed = _SPREAD * self.seed + index
            with _one_thread():
                start = model.load(base)
                if cell == "multitask":
                    trained = recipes.multitask(start, seed=seed)
                else:
                    trained = recipes.finetune(start, cell, seed=seed)
            model.save(trained, work)

        folder = self._folder(f"seed{self.seed}") / cell
        facts = {"made": cell, "seed": self.seed, "torch": version("torch")}
        return store.get_or_make(folder, facts, make)

    def _folder(self, name: str) -> Path:
        return self.cache / f"cldr-t5-{_version()}-{name}"


def _answers(model: nn.Module, task: str, source: Tensor) -> Sequence[str]:
    from mtk_tasks_text import decoding, tokens

    kind, language = parse(task)
    if kind in RANKED:
        answers = options(kind, language)
        best = decoding.likelihoods(model, source, answers).argmax(dim=1)
        return [answers[place] for place in best.tolist()]
    return tokens.decode(decoding.greedy(model, source, LONGEST[kind]))


@lru_cache(maxsize=1)
def _version() -> str:
    """A short hash of everything that decides the models."""
    digest = hashlib.sha256(version("babel").encode())
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
