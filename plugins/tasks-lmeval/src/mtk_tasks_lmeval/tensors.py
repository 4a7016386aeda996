"""Prompts and right answers as tensors, and what a model says at the answers' tokens.

Causal models get prompt and answer as one text, padded on the left, so that all answers
end at the right edge and only the last columns need logits. Encoder-decoder models get
the answer as the decoder's text.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

_CROSS = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn")
_KEYS_AND_VALUES = ("k", "v", "k_proj", "v_proj", "key", "value")
_IGNORED = -100  # what transformers calls a target that does not count


def encode(lm: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors of n items.

    Args:
        lm: the harness's wrapper of the model; its tokens are used.
        pairs: prompt and answer.

    Returns:
        ``input_ids`` and ``attention_mask`` (n, s), ``targets`` and ``counted`` (n, t).
    """
    causal = lm.backend == "causal"
    sources, answers = [], []
    for prompt, answer in pairs:
        source, target = _tokens(lm, prompt, answer)
        if causal:
            whole = [*source, *target][-(lm.max_length + 1) :]
            source = whole[:-1]
            target = whole[-min(len(target), len(source)) :]
        sources.append(source[-lm.max_length :])
        answers.append(target)
    padding = lm.tokenizer.pad_token_id or 0
    ids, mask = _padded(sources, padding, left=causal)
    targets, counted = _padded(answers, padding, left=causal)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "targets": targets,
        "counted": counted,
    }


def _tokens(lm: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """As the harness splits them, so that likelihoods are of the same tokens."""
    if not prompt:
        return [lm.prefix_token_id], lm.tok_encode(answer, add_special_tokens=False)
    source, target = lm._encode_pair(prompt, answer)  # noqa: SLF001  it has no public one
    return source, target


def _padded(
    rows: Sequence[Sequence[int]], padding: int, *, left: bool
) -> tuple[Tensor, Tensor]:
    """Rows of unlike length as one tensor (n, longest), and which entries are theirs."""
    longest = max(len(row) for row in rows)
    values = torch.full((len(rows), longest), padding)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(len(row))
        values[number, place] = torch.tensor(row, dtype=torch.int64)
        mask[number, place] = True
    return values, mask


def outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits at the answers' tokens, (n, t, vocabulary); differentiable."""
    module: Any = model
    mask, targets = inputs["attention_mask"], inputs["targets"]
    if module.config.is_encoder_decoder:
        scores: Tensor = module(
            input_ids=inputs["input_ids"],
            attention_mask=mask.long(),
            labels=targets.masked_fill(~inputs["counted"], _IGNORED),
            use_cache=False,
        ).logits
        return scores
    width = targets.shape[1]
    more: dict[str, Any] = {}
    if _takes(model, "position_ids"):
        more["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
    if _takes(model, "logits_to_keep"):
        more["logits_to_keep"] = width
    scores = module(
        input_ids=inputs["input_ids"],
        attention_mask=mask.long(),
        use_cache=False,
        **more,
    ).logits
    return scores[:, -width:]


def gram_mask(
    model: nn.Module, module_name: str, inputs: Mapping[str, Tensor]
) -> Tensor:
    """Rows of a linear layer's input that are no padding, (n, T)."""
    module: Any = model
    if module.config.is_encoder_decoder:
        parts = module_name.split(".")
        source = "encoder" in parts
        crosses = parts[-1] in _KEYS_AND_VALUES and any(
            part in _CROSS for part in parts
        )
        return inputs["attention_mask" if source or crosses else "counted"]
    head = module.get_output_embeddings()
    if _takes(model, "logits_to_keep") and head is module.get_submodule(module_name):
        return inputs["counted"]
    return inputs["attention_mask"]


def _takes(model: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters
