"""A toy track of sequences: a letter is followed by the next of its alphabet, or copied.

Each expert has seen half of the letters follow; copying is what the base can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtk.randomness import stream
from mtk.testing._toy_training import ITEMS, SPLITS, fit, like, loaded, saved, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mtk.tracks import Data, Models

    Inputs = Mapping[str, Tensor]

_LETTERS, _LONGEST, _WIDTH = 8, 5, 12
# Cell -> the letters it uses, and whether they follow (1) or are copied (0).
WORDS = {
    "early": (range(1, 5), 1),
    "late": (range(5, 9), 1),
    "mixed": (range(1, 9), 1),
    "copy": (range(1, 9), 0),
}


class Words(nn.Module):
    """Scores of the letter that belongs at each place, (n, T, letters + 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(_LETTERS + 1, _WIDTH)
        self.kind = nn.Embedding(2, _WIDTH)
        self.mix = nn.Linear(_WIDTH, _WIDTH)
        self.out = nn.Linear(_WIDTH, _LETTERS + 1, bias=False)

    def forward(self, letters: Tensor, kind: Tensor) -> Tensor:
        """Letters (n, T), 0 is padding; kind (n,)."""
        both = self.embed(letters) + self.kind(kind)[:, None]
        scores: Tensor = self.out(torch.tanh(self.mix(both)))
        return scores


class ToyWords:
    """The target of ``toy-words``."""

    def __init__(self, *, cache: Path, seed: int, options: Mapping[str, Any]) -> None:  # noqa: ARG002
        self._folder, self._seed = cache, seed

    def prepare(self, report: Callable[[str, float], None]) -> Models:
        """Train everything, in a fraction of a second."""
        base = start(Words, 0)
        fit(base, base.parameters(), lambda: self._loss(base, WORDS, copy=8.0), 25)
        made = {"base": base}
        cells = {"early": ["early"], "late": ["late"], "multitask": ["early", "late"]}
        for name, own in cells.items():
            made[name] = expert = like(Words, base)
            rate = 0.02 + 0.001 * self._seed
            fit(expert, expert.parameters(), lambda: self._loss(expert, own), 20, rate)  # noqa: B023
            report(f"toy model {name}", 1.0)
        paths = saved(made, self._folder / f"seed{self._seed}")
        experts = [paths["early"], paths["late"]]
        return {
            "base": paths["base"],
            "experts": experts,
            "multitask": paths["multitask"],
        }

    def _loss(
        self, model: nn.Module, cells: Iterable[str], copy: float = 1.0
    ) -> Tensor:
        total = torch.zeros(())
        for cell in cells:
            inputs: Any = self.data(cell, "train")["inputs"]
            outputs = self.outputs(model, cell, inputs)
            targets = inputs["targets"].masked_fill(inputs["letters"] == 0, -100)
            weight = copy if cell == "copy" else 1.0
            total += weight * F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
        return total

    def build(self, path: Path) -> nn.Module:
        """The model with these weights."""
        return loaded(Words, path)

    def data(self, task: str, split: str) -> Data:
        """Words of two to five letters, and what belongs at each place."""
        letters, kind = WORDS[task]
        generator = stream(0, "toy words", task, split)
        words = torch.randint(
            letters.start, letters.stop, (ITEMS, _LONGEST), generator=generator
        )
        lengths = torch.randint(2, _LONGEST + 1, (ITEMS,), generator=generator)
        words[torch.arange(_LONGEST) >= lengths[:, None]] = 0
        targets = torch.where(words > 0, words % _LETTERS + 1, 0) if kind else words
        first = SPLITS.index(split) * ITEMS
        return {
            "inputs": {
                "letters": words,
                "kind": torch.full((ITEMS,), kind),
                "targets": targets,
            },
            "labels": _texts(targets, words > 0),
            "ids": list(range(first, first + ITEMS)),
        }

    def outputs(self, model: nn.Module, task: str, inputs: Any) -> Tensor:  # noqa: ARG002
        """Scores of letters, (n, T, letters + 1)."""
        scores: Tensor = model(inputs["letters"], inputs["kind"])
        return scores

    def mask(self, task: str, inputs: Inputs) -> Tensor:  # noqa: ARG002
        """Places that hold a letter."""
        return inputs["letters"] > 0

    def targets(self, task: str, inputs: Inputs) -> Tensor:  # noqa: ARG002
        """What belongs at each place."""
        return inputs["targets"]

    def gram_mask(self, module_name: str, task: str, inputs: Inputs) -> Tensor:  # noqa: ARG002
        """Rows that are no padding, the same in every layer."""
        return inputs["letters"] > 0

    def predict(self, model: nn.Module, task: str, inputs: Any) -> Sequence[object]:
        """The best letter at each place, as text."""
        best = self.outputs(model, task, inputs).argmax(-1)
        return _texts(best, inputs["letters"] > 0)


def _texts(letters: Tensor, mask: Tensor) -> list[str]:
    rows = zip(letters.tolist(), mask.tolist(), strict=True)
    return [
        "".join(chr(96 + x) for x, kept in zip(row, counts, strict=True) if kept)
        for row, counts in rows
    ]


def exact(*, predictions: Sequence[Any], references: Sequence[Any]) -> list[float]:
    """One for every right text."""
    return [float(p == r) for p, r in zip(predictions, references, strict=True)]


def overlap(*, predictions: Sequence[Any], references: Sequence[Any]) -> list[float]:
    """Share of right letters."""
    pairs = zip(predictions, references, strict=True)
    return [
        sum(a == b for a, b in zip(p, r, strict=True)) / max(1, len(r))
        for p, r in pairs
    ]


def variety(
    *,
    predictions: Sequence[Any],
    references: Sequence[Any],  # noqa: ARG001
) -> tuple[float, float]:
    """Different texts among all, with a binomial standard error."""
    n = len(predictions)
    share = len(set(predictions)) / n
    return share, float((share * (1 - share) / n) ** 0.5)
