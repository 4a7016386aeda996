"""The track ``crosslingual-mt5``: five tasks in five languages, with mT5."""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk import roots
from mtk.errors import UsageError
from mtk_tasks_crosslingual import asking, home
from mtk_tasks_crosslingual.cells import (
    ABILITY,
    HELD_IN,
    MICRO,
    MULTITASK,
    RANKED,
    SPLITS,
    Cuts,
    parse,
)
from mtk_tasks_crosslingual.sets import examples
from mtk_tasks_crosslingual.templates import ANSWERS, TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor, nn

    from mtk.roots import Part
    from mtk.training import Regime

    Report = Callable[[str, float], None]
    Batch = Mapping[str, Tensor]

VERSION = "1"
_SPREAD = 1000  # expert of seed s: the protocol's seed plus this times s


class CrosslingualMt5:
    """One instance of the track; see `mtk.tracks.LiveTrack` and ``mtk tracks prepare``."""

    def __init__(
        self,
        *,
        cache: Path,
        seed: int,
        options: Mapping[str, object],
        cuts: Cuts | None = None,
        regime: Regime | None = None,
    ) -> None:
        """Check the options; nothing is read yet.

        Args:
            cache: folder where the root is noted.
            seed: of the experts' training.
            options: ``normalise`` and ``micro``.
            cuts: where splits end, for smaller copies of the data.
            regime: of all training, other than the protocol's.
        """
        unknown = set(options) - {"normalise", "micro"}
        if unknown:
            raise UsageError(f"{home.NAME} has no option {min(unknown)!r}")
        self.cache, self.seed = Path(cache), seed
        self.normalise = bool(options.get("normalise", False))
        self.micro = int(str(options.get("micro", MICRO)))
        self._cuts, self._given = cuts or Cuts(), regime
        chosen = {"normalise": self.normalise, "micro": self.micro}
        self._words = roots.words(seed, chosen, {"normalise": False, "micro": MICRO})

    def prepare(self, report: Report) -> dict[str, Any]:
        """The models, which ``mtk tracks prepare`` has made or imported."""
        root = self._root()
        roots.need_all(self.parts(root), home.NAME, root, self._words)
        report("models ready", 1.0)
        return {
            "base": root / home.BASE,
            "experts": [self.place(root, cell) for cell in HELD_IN],
            "multitask": self.place(root, MULTITASK),
        }

    def missing(self) -> list[str]:
        """What this machine lacks, one phrase each."""
        root = roots.known_root(self.cache)
        found = None if root is None else self._parts(root, quick=True)
        return roots.lacking(found, home.NAME, self._words)

    def notes(self) -> list[str]:
        """What the commonest answer alone would score on the cells with ranking."""
        return asking.commonest(self._root(), self._cuts)

    def parts(self, root: Path) -> list[Part]:
        """Everything that must be there, in the order in which it is to be got."""
        return self._parts(root, quick=False)

    def fetch(self, root: Path, name: str, report: Report) -> None:
        """Download the base, or one file of a data set."""
        from mtk_tasks_crosslingual import download

        if name == home.BASE:
            download.model(root / home.BASE, report)
        else:
            download.fetch(root, name, report)

    def make(
        self, root: Path, name: str, report: Report, *, device: str = "cpu"
    ) -> None:
        """Train an expert or the multitask model, or go on with it."""
        from mtk.training import device_named, fit
        from mtk_tasks_crosslingual import model, recipe

        there = device_named(device)
        cells = HELD_IN if name == MULTITASK else (name,)
        tokenizer = model.tokenizer_of(root / home.BASE)
        pairs = [pair for cell in cells for pair in self._pairs(root, cell)]
        ready = {c: self._data(root, c, "validation", tokenizer) for c in cells}
        base = home.base_hash(root)
        module = model.load(root / home.BASE).to(there).requires_grad_(True)
        folder = self.place(root, name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        progress = fit(
            dict(module.named_parameters()),
            recipe.parts_of(module, tokenizer, pairs, self._regime, self.micro),
            self._regime,
            state=roots.training_state(folder),
            identity=asking.identity(
                home.base_hash(root, "config.json"), pairs, ready, self.normalise
            ),
            report=lambda text, share: report(f"{name}: {text}", share),
            evaluate=self._scorer(ready, module, tokenizer, there),
        )
        done = {"regime": asdict(self._regime), "training": asdict(progress)}
        self._save(root, name, module, base=base, **done)

    def adopt(self, root: Path, name: str, source: Path) -> None:
        """Import an expert: a folder whose tensors are those of the base, copied."""
        from mtk_tasks_crosslingual import model

        if name not in (*HELD_IN, MULTITASK):
            raise UsageError(f"{home.NAME} has no expert {name!r}")
        if not source.is_dir():
            raise UsageError(f"{source} is no folder of transformers")
        asking.check_same(source, root / home.BASE)
        base = home.base_hash(root)
        self._save(root, name, model.load(source), base=base, imported=str(source))

    def build(self, path: Path) -> nn.Module:
        """The model at a path."""
        from mtk_tasks_crosslingual import model

        return model.load(path).requires_grad_(False)

    def data(self, task: str, split: str) -> dict[str, Any]:
        """One split of one cell.

        Returns:
            ``inputs``: tokens of prompts and right answers; ``labels``: numbers of the
            right answers, or right texts with their language, or right tokens; ``ids``:
            of the underlying items.
        """
        return self._data(self._root(), task, split, self._tokenizer)

    def outputs(self, model: nn.Module, task: str, inputs: Batch) -> Tensor:  # noqa: ARG002
        """Logits at every token of the right answers, (n, t, vocabulary)."""
        from mtk_tasks_crosslingual import model as mt5

        return mt5.outputs(model, inputs)

    def mask(self, task: str, inputs: Batch) -> Tensor:  # noqa: ARG002
        """Tokens of the right answers that are no padding, (n, t)."""
        return inputs["counted"]

    def targets(self, task: str, inputs: Batch) -> Tensor:  # noqa: ARG002
        """The tokens of the right answers, (n, t)."""
        return inputs["targets"]

    def gram_mask(self, module_name: str, task: str, inputs: Batch) -> Tensor:  # noqa: ARG002
        """Source tokens for the encoder and what it gives to the decoder, else targets."""
        from mtk_tasks_crosslingual import model as mt5

        return mt5.gram_mask(module_name, inputs)

    def predict(self, model: nn.Module, task: str, inputs: Batch) -> list[Any]:
        """The likeliest answer's number, the text written, or the tokens guessed."""
        return self._predict(model, task, inputs, self._tokenizer)

    def place(self, root: Path, name: str) -> Path:
        """The folder of an expert or of the multitask model."""
        return roots.made(root, f"{home.NAME}-{VERSION}", self.seed, name)

    def _parts(self, root: Path, *, quick: bool) -> list[Part]:
        made, steps = self.place(root, ""), self._regime.steps
        return home.parts(root, made, steps, self._cuts, quick=quick)

    def _root(self) -> Path:
        return roots.need_root(self.cache, home.NAME)

    @cached_property
    def _tokenizer(self) -> Any:
        from mtk_tasks_crosslingual import model

        return model.tokenizer_of(self._root() / home.BASE)

    @cached_property
    def _regime(self) -> Regime:
        from mtk_tasks_crosslingual.recipe import PROTOCOL

        chosen = self._given or PROTOCOL
        return replace(chosen, seed=chosen.seed + _SPREAD * self.seed)

    def _predict(
        self, model: nn.Module, task: str, inputs: Batch, tokenizer: Any
    ) -> list[Any]:
        from mtk_tasks_crosslingual import model as mt5

        kind = parse(task)[0]
        if kind in RANKED:
            answers, normalise = ANSWERS[parse(task)], self.normalise
            return mt5.rank(model, tokenizer, inputs, answers, normalise=normalise)
        if task == ABILITY:
            return mt5.guess(model, inputs)
        return mt5.write(model, tokenizer, inputs)

    def _data(
        self, root: Path, task: str, split: str, tokenizer: Any
    ) -> dict[str, Any]:
        from mtk_tasks_crosslingual import model

        if split not in SPLITS:
            raise UsageError(f"no split named {split!r}; the splits are {SPLITS}")
        found = examples(root, task, split, self._cuts)
        if task == ABILITY:  # questions of one paragraph are one item
            found = list({example.number: example for example in found}.values())
        if task == ABILITY and split == "test":  # and the cut may go through them
            others = examples(root, task, "validation", self._cuts)
            numbers = {example.number for example in others}
            found = [example for example in found if example.number not in numbers]
        if not found:
            raise UsageError(
                f"{task} has no {split} items but paragraphs of another split"
            )
        templates = TEMPLATES[parse(task)]
        asked = [
            asking.filled(templates[place % len(templates)], example, task)
            for place, example in enumerate(found)
        ]
        inputs = model.encode(tokenizer, *zip(*asked, strict=True))
        return {
            "inputs": inputs,
            "labels": asking.labels(task, found, inputs),
            "ids": [example.number for example in found],
        }

    def _pairs(self, root: Path, cell: str) -> list[tuple[str, str]]:
        """Prompt and answer of every training item with every template."""
        found = examples(root, cell, "train", self._cuts)
        return [
            asking.filled(template, example, cell)
            for example in found
            for template in TEMPLATES[parse(cell)]
        ]

    def _scorer(
        self,
        ready: Mapping[str, Mapping[str, Any]],
        module: nn.Module,
        tokenizer: Any,
        device: torch.device,
    ) -> Callable[[], float]:
        """The mean over cells of the validation score that ranks."""
        import torch

        def score() -> float:
            means = []
            module.eval()  # a step of training came before
            with torch.no_grad():
                for cell, data in ready.items():
                    inputs = {n: t.to(device) for n, t in data["inputs"].items()}
                    found = self._predict(module, cell, inputs, tokenizer)
                    means.append(asking.mean_score(cell, found, data["labels"]))
            return statistics.fmean(means)

        return score

    def _save(self, root: Path, name: str, module: nn.Module, **more: Any) -> None:
        """A folder of transformers that appears whole; the training state is removed."""
        from mtk_tasks_crosslingual import model

        facts = {"track": home.NAME, "made": name, **more}
        writer: Any = module.to("cpu")
        with model.quietly():
            roots.finish(self.place(root, name), writer.save_pretrained, facts)
