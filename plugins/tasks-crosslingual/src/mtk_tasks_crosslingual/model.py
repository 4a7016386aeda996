"""mT5: texts to tensors, what the model says, and its folder."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import CheckpointError, UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    Batch = Mapping[str, Tensor]

LONGEST_INPUT = 512
LONGEST_TARGET = 128  # of a trained answer; the protocol does not say
NEW_TOKENS = 64
_IGNORED = -100  # what transformers calls a target that does not count
_AT_ONCE = 16  # items of one forward pass of `write` and `rank`


def load(folder: Path) -> nn.Module:
    """The model of a folder of transformers, in float32 and evaluation mode."""
    from safetensors import SafetensorError
    from transformers import MT5ForConditionalGeneration

    try:
        with quietly():
            found: Any = MT5ForConditionalGeneration.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # and refused below, by name
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is no mT5 that transformers builds: {first_line(error)}"
        ) from error
    model: nn.Module = found[0]
    lost = sorted(found[1]["missing_keys"])
    for name, given, wanted in sorted(found[1]["mismatched_keys"]):
        raise CheckpointError(
            f"{folder}: {name!r} is {tuple(given)}, and {tuple(wanted)} by config.json"
        )
    if lost:  # transformers would draw them at random
        raise CheckpointError(f"{folder}: the tensor {lost[0]!r} is missing")
    return model.eval()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' progress bars and warnings out of what mtk says, for a block."""
    from transformers.utils import logging

    log: Any = logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of the base; nothing of its folder is run."""
    from transformers import AutoTokenizer

    try:
        with quietly():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{folder} has no tokenizer that transformers reads: {first_line(error)}"
        ) from error


def encode(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]
) -> dict[str, Tensor]:
    """Tensors of n items: ``input_ids``, ``attention_mask``; ``targets``, ``counted``."""
    ids, mask = _tokens(tokenizer, prompts, LONGEST_INPUT)
    targets, counted = _tokens(tokenizer, answers, LONGEST_TARGET)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "targets": targets,
        "counted": counted,
    }


def _tokens(
    tokenizer: Any, texts: Sequence[str], longest: int
) -> tuple[Tensor, Tensor]:
    found = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=longest,
        return_tensors="pt",
    )
    return found["input_ids"], found["attention_mask"].bool()


def outputs(model: nn.Module, inputs: Batch) -> Tensor:
    """Logits at every target token, (n, t, vocabulary); differentiable."""
    module: Any = model
    scores: Tensor = module(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"].long(),
        labels=inputs["targets"].masked_fill(~inputs["counted"], _IGNORED),
        use_cache=False,
    ).logits
    return scores


def loss(model: nn.Module, inputs: Batch) -> Tensor:
    """Mean cross entropy of the target tokens that are no padding."""
    scores = outputs(model, inputs)
    counted = inputs["counted"]
    return torch.nn.functional.cross_entropy(
        scores[counted], inputs["targets"][counted]
    )


def write(model: nn.Module, tokenizer: Any, inputs: Batch) -> list[str]:
    """What the model answers, greedily, in at most ``NEW_TOKENS`` tokens."""
    module: Any = model
    texts: list[str] = []
    for part in parts(inputs, _AT_ONCE):
        found = module.generate(
            input_ids=part["input_ids"],
            attention_mask=part["attention_mask"].long(),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
        )
        texts += tokenizer.batch_decode(found, skip_special_tokens=True)
    return [text.strip() for text in texts]


def rank(
    model: nn.Module,
    tokenizer: Any,
    inputs: Batch,
    answers: Sequence[str],
    *,
    normalise: bool,
) -> list[int]:
    """The likeliest of k answers to each item, by its place.

    Args:
        model: an mT5.
        tokenizer: of the model.
        inputs: n items.
        answers: k texts.
        normalise: divide the log-likelihood of an answer by its number of tokens.
    """
    targets, counted = _tokens(tokenizer, answers, LONGEST_TARGET)  # (k, t)
    k = len(answers)
    best: list[int] = []
    for part in parts(inputs, _AT_ONCE):
        n = len(part["input_ids"])
        every = {
            "input_ids": part["input_ids"].repeat_interleave(k, dim=0),
            "attention_mask": part["attention_mask"].repeat_interleave(k, dim=0),
            "targets": targets.repeat(n, 1).to(part["input_ids"].device),
            "counted": counted.repeat(n, 1).to(part["input_ids"].device),
        }
        scores = outputs(model, every).float().log_softmax(-1)  # (n k, t, v)
        chosen = scores.gather(-1, every["targets"][..., None])[..., 0]
        total = (chosen * every["counted"]).sum(1)  # (n k,)
        if normalise:
            total = total / every["counted"].sum(1)
        best += total.view(n, k).argmax(1).tolist()
    return best


def guess(model: nn.Module, inputs: Batch) -> list[list[int]]:
    """The likeliest token at every target token, given the true ones before it."""
    found: list[list[int]] = []
    for part in parts(inputs, _AT_ONCE):
        best = outputs(model, part).argmax(-1)
        rows = zip(best, part["counted"], strict=True)
        found += [row[counted].tolist() for row, counted in rows]
    return found


def parts(inputs: Batch, length: int) -> list[dict[str, Tensor]]:
    """Batches of at most this many items, cut to the longest row of each."""
    total = len(inputs["input_ids"])
    found = []
    for start in range(0, total, length):
        part = {name: t[start : start + length] for name, t in inputs.items()}
        for mask, ids in (("attention_mask", "input_ids"), ("counted", "targets")):
            width = int(part[mask].sum(1).max())
            part[mask], part[ids] = part[mask][:, :width], part[ids][:, :width]
        found.append(part)
    return found


def gram_mask(module_name: str, inputs: Batch) -> Tensor:
    """Rows of a linear layer's input that are no padding, (n, T).

    The encoder, and keys and values of cross-attention, are given source tokens; all
    other layers of the decoder target tokens.
    """
    parts_of_name = module_name.split(".")
    source = parts_of_name[0] == "encoder" or (
        "EncDecAttention" in parts_of_name and parts_of_name[-1] in ("k", "v")
    )
    return inputs["attention_mask" if source else "counted"]
