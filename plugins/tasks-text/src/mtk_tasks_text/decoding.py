"""Answers of a model: greedy decoding, and the log-likelihood of given answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk_tasks_text import tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


def logits(model: nn.Module, inputs: Tensor, answers: Tensor) -> Tensor:
    """Return the scores of every byte of answers, given the bytes before it.

    Args:
        model: a T5.
        inputs: tokens ``(n, s)``.
        answers: tokens ``(n, t)``.

    Returns:
        ``(n, t, vocabulary)``, differentiable in the model.
    """
    module: Any = model
    scores: Tensor = module(
        input_ids=inputs,
        attention_mask=inputs != tokens.PAD,
        decoder_input_ids=tokens.shifted(answers),
        use_cache=False,
    ).logits
    return scores


def greedy(model: nn.Module, inputs: Tensor, longest: int) -> Tensor:
    """Return the most likely next byte after byte, until all answers have ended.

    Args:
        model: a T5.
        inputs: tokens ``(n, s)``.
        longest: most tokens of an answer, its end included.

    Returns:
        Tokens ``(n, t)`` with t at most ``longest``; padding after the end.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    module: Any = model
    mask = inputs != tokens.PAD
    hidden = module.encoder(input_ids=inputs, attention_mask=mask)[0]  # (n, s, d)
    past = EncoderDecoderCache(DynamicCache(), DynamicCache())
    last = torch.full((len(inputs), 1), tokens.PAD)  # (n, 1)
    ended = torch.zeros(len(inputs), dtype=torch.bool)
    said: list[Tensor] = []
    while len(said) < longest and not bool(ended.all()):
        scores = module(
            encoder_outputs=(hidden,),
            attention_mask=mask,
            decoder_input_ids=last,
            past_key_values=past,
            use_cache=True,
        ).logits[:, -1]  # (n, vocabulary)
        best = scores.argmax(dim=-1).masked_fill(ended, tokens.PAD)
        said.append(best)
        ended |= best == tokens.END
        last = best[:, None]
    return torch.stack(said, dim=1)


def likelihoods(model: nn.Module, inputs: Tensor, answers: Sequence[str]) -> Tensor:
    """Return the summed log-likelihood of each of k answers to each input.

    Args:
        model: a T5.
        inputs: tokens ``(n, s)``; each is encoded once.
        answers: k texts.

    Returns:
        ``(n, k)``, not divided by length.
    """
    module: Any = model
    mask = inputs != tokens.PAD
    hidden = module.encoder(input_ids=inputs, attention_mask=mask)[0]  # (n, s, d)
    said = tokens.encode(answers)  # (k, t)
    k, n = len(said), len(inputs)
    every = said.repeat(n, 1)  # (n k, t)
    scores = module(
        encoder_outputs=(hidden.repeat_interleave(k, dim=0),),
        attention_mask=mask.repeat_interleave(k, dim=0),
        decoder_input_ids=tokens.shifted(every),
        use_cache=False,
    ).logits  # (n k, t, vocabulary)
    chosen = scores.log_softmax(-1).gather(-1, every[..., None])[..., 0]  # (n k, t)
    total: Tensor = (chosen * (every != tokens.PAD)).sum(dim=1).view(n, k)
    return total
