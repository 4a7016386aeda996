"""The live track of a file: its models, its items, and the harness's scores of them."""

from __future__ import annotations

import hashlib
import weakref
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import UsageError, first_line
from mtk_tasks_lmeval import harness, jsonl, splits, tensors
from mtk_tasks_lmeval.entries import HUB
from mtk_tasks_lmeval.metrics import scores_of
from mtk_tasks_lmeval.rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from mtk_tasks_lmeval.spec import Cell, Spec

# Numbers of items are the place in their source, and above that a hash of its name.
_PLACES = 1 << 21
_NAMES = 1 << 31  # together below 2^53, which JSON's readers keep exactly


class FileTrack:
    """One instance of a track from a file."""

    def __init__(
        self,
        spec: Spec,
        *,
        cache: Path,  # noqa: ARG002  nothing is made, so nothing is kept
        seed: int,  # noqa: ARG002  the experts are given, not trained
        options: Mapping[str, object],
    ) -> None:
        if options:
            raise UsageError(f"{spec.path}: a track from a file has no options")
        self._spec = spec
        self._tasks: dict[tuple[str, str], Any] = {}
        self._wrapped: tuple[weakref.ref[nn.Module], Any] | None = None
        self._model: nn.Module | None = None

    def missing(self) -> list[str]:
        """Models that are not there, one phrase each."""
        return [
            f"{what}: {path}"
            for what, path in self._models()
            if not path.startswith(HUB) and not Path(path).exists()
        ]

    def prepare(self, report: Callable[[str, float], None]) -> dict[str, Any]:
        """Try every cell once, then find the models; some are downloaded, if need be.

        Returns:
            ``base``, ``experts`` in the order of the held-in cells, and ``multitask``,
            which is None where the file names none.

        Raises:
            UsageError: a model, a task, a metric or an item is not as it should be.
        """
        spec = self._spec
        absent = self.missing()
        if absent:
            raise UsageError(
                f"{spec.path}: {len(absent)} models are missing, first:\n{absent[0]}"
            )
        found: dict[str, Path] = {}
        models = self._models()
        steps = len(spec.cells) + len(models)
        for number, cell in enumerate(spec.cells):
            report(f"checking {cell.name}", number / steps)
            rehearse(spec, self._task, cell)
        for number, (what, path) in enumerate(models, len(spec.cells)):
            report(what, number / steps)
            found[path] = self._local(path)
        _config(found[spec.base])
        self._check_tokenizer(found[spec.tokenizer or spec.base])
        report("models found", 1.0)
        return {
            "base": found[spec.base],
            "experts": [
                found[cell.expert] for cell in spec.cells if cell.kind == "held_in"
            ],
            "multitask": found[spec.multitask] if spec.multitask else None,
        }

    def build(self, path: Path) -> nn.Module:
        """The model at a path, by transformers' own classes; no code of its folder runs."""
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        config = _config(path)
        auto: Any = (
            AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        )
        try:
            with harness.quietly():
                model, info = auto.from_pretrained(
                    path,
                    config=config,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=getattr(torch, self._spec.dtype),
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError) as error:
            raise _no_model(path, error) from error
        lost = sorted(info["missing_keys"])
        if lost:  # transformers would draw them at random
            raise UsageError(f"{path}: the tensor {lost[0]!r} is missing")
        built: nn.Module = model.eval().requires_grad_(False)
        return built

    def data(self, task: str, split: str) -> dict[str, Any]:
        """The items of one cell.

        Returns:
            ``inputs``: ``place`` and ``part`` (n,), which name the items, and the tokens
            of prompts and right answers (:func:`mtk_tasks_lmeval.tensors.encode`);
            ``labels``: the right answers' texts; ``ids``: numbers of the items.
        """
        cell = self._spec.cell(task)
        part = splits.part_of(cell, split)
        given = self._task(cell, part)
        places = splits.places(cell, harness.count(given), split, self._where(cell))
        source = splits.source_of(cell, part)
        lm = self._lm(self._any_model())
        pairs = harness.requests(self._spec, cell, given, lm, places)
        encoded = tensors.encode(lm, pairs)
        first = _name_number(cell.items if not part else source.label) * _PLACES
        return {
            "inputs": {
                "place": torch.tensor(places),
                "part": torch.full((len(places),), part),
                **encoded,
            },
            "labels": [answer.strip() for _, answer in pairs],
            "ids": [first + place for place in places],
        }

    def outputs(
        self,
        model: nn.Module,
        task: str,  # noqa: ARG002  all cells have the same form
        inputs: Mapping[str, Tensor],
    ) -> Tensor:
        """Logits at the tokens of the right answers, (n, t, vocabulary)."""
        self._model = self._model or model
        return tensors.outputs(model, inputs)

    def mask(self, task: str, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Tokens of the right answers that are no padding, (n, t)."""
        return inputs["counted"]

    def targets(self, task: str, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """The tokens of the right answers, (n, t)."""
        return inputs["targets"]

    def gram_mask(
        self,
        module_name: str,
        task: str,  # noqa: ARG002
        inputs: Mapping[str, Tensor],
    ) -> Tensor:
        """Rows of a linear layer's input that are no padding, (n, T)."""
        return tensors.gram_mask(self._any_model(), module_name, inputs)

    def predict(
        self, model: nn.Module, task: str, inputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Of each item the harness's scores; or, for a JSONL file, the answer's text."""
        cell, lm = self._spec.cell(task), self._lm(model)
        places, parts = inputs["place"].tolist(), inputs["part"].tolist()
        found: dict[tuple[int, int], Any] = {}
        for part in sorted(set(parts)):
            label = splits.source_of(cell, part).label
            of_part = [p for p, q in zip(places, parts, strict=True) if q == part]
            logged = harness.samples(
                self._spec, cell, lm, self._task(cell, part), sorted(set(of_part))
            )
            for sample in logged:
                found[part, sample["doc_id"]] = (
                    jsonl.answer(cell, sample)
                    if cell.source.data
                    else scores_of(cell, sample, label, self._where(cell))
                )
        return [found[part, place] for part, place in zip(parts, places, strict=True)]

    def _where(self, cell: Cell) -> str:
        return f"{self._spec.path}: cell {cell.name!r}"

    def _task(self, cell: Cell, part: int) -> Any:
        source = splits.source_of(cell, part)
        key = cell.name, source.label
        if key not in self._tasks:
            self._tasks[key] = harness.load_task(self._spec, cell, source)
        return self._tasks[key]

    def _check_tokenizer(self, folder: Path) -> None:
        template = _tokenizer(folder).chat_template
        if self._spec.chat_template and not template:
            raise UsageError(
                f"{self._spec.path}: chat_template is true, and {folder} has none\n"
                "Name a folder whose tokenizer has one: tokenizer = 'PATH'"
            )

    def _models(self) -> list[tuple[str, str]]:
        """All models of the file: what each is for, and its path or address."""
        spec = self._spec
        experts = [
            (f"expert of {cell.name}", cell.expert)
            for cell in spec.cells
            if cell.kind == "held_in"
        ]
        more = [
            (what, path)
            for what, path in (
                ("multitask", spec.multitask),
                ("tokenizer", spec.tokenizer),
            )
            if path
        ]
        return [("base", spec.base), *experts, *more]

    def _local(self, path: str) -> Path:
        from mtk.opening import locate

        return locate(path, str(self._spec.path))[0]

    def _any_model(self) -> nn.Module:
        """A model of the track's class; prompts and names need one, not its weights."""
        if self._model is None:
            self._model = self.build(self._local(self._spec.base))
        return self._model

    def _lm(self, model: nn.Module) -> Any:
        """The harness's wrapper, kept as long as the same model is asked."""
        self._model = model
        if self._wrapped is None or self._wrapped[0]() is not model:
            folder = self._local(self._spec.tokenizer or self._spec.base)
            wrapped = harness.wrap(self._spec, model, _tokenizer(folder))
            self._wrapped = weakref.ref(model), wrapped
        return self._wrapped[1]


@lru_cache(maxsize=256)
def _name_number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _NAMES


def _config(path: Path) -> Any:
    """What transformers knows of a model."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(path, error) from error


def _no_model(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{path} is no language model that transformers builds\n{first_line(error)}"
    )


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{folder} has no tokenizer that transformers reads\n"
            "Name a folder that has one: tokenizer = 'PATH'"
        ) from error
