"""Answers of a model: greedy decoding, and the log-likelihood of given answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk_tasks_text import tokens

# Dropping rows copies those that stay; it pays when this share or less is left.
_WORTHWHILE = 0.75

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

    What ``generate`` of transformers returns, in half the time for a model this small:
    nothing is set up anew for each byte, and finished answers are dropped.

    Args:
        model: a T5.
        inputs: tokens ``(n, s)``.
        longest: most tokens of an answer, its end included.

    Returns:
        Tokens ``(n, longest)``; padding after the end.
    """
    module: Any = model
    mask = inputs != tokens.PAD
    hidden = module.encoder(input_ids=inputs, attention_mask=mask)[0]  # (n, s, d)
    layers = [_Layer(block, hidden, longest) for block in module.decoder.block]
    unseen = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None, None]
    first = module.decoder.block[0].layer[0].SelfAttention
    distance = first.compute_bias(longest, longest)  # (1, heads, longest, longest)
    said = torch.full((len(inputs), longest), tokens.PAD)
    going = torch.arange(len(inputs))  # the rows that are still worked on
    last = torch.full((len(inputs), 1), tokens.PAD)
    for step in range(longest):
        x = module.shared(last)  # (m, 1, d)
        for layer in layers:
            x = layer(x, step, distance[:, :, step : step + 1, : step + 1], unseen)
        x = module.decoder.final_layer_norm(x) * module.model_dim**-0.5
        last = module.lm_head(x).argmax(dim=-1)  # (m, 1)
        said[going, step] = last[:, 0]
        open_ = (said[going] != tokens.END).all(dim=1)  # (m,)
        if not bool(open_.any()):
            break
        if int(open_.sum()) <= _WORTHWHILE * len(open_):
            going, last, unseen = going[open_], last[open_], unseen[open_]
            for layer in layers:
                layer.keep(open_)
    ended = (said == tokens.END).cumsum(dim=1) - (said == tokens.END).long() > 0
    return said.masked_fill(ended, tokens.PAD)


class _Layer:
    """One block of a T5's decoder, with the keys and values of what it has read."""

    def __init__(self, block: Any, hidden: Tensor, longest: int) -> None:
        self.own, self.cross, self.feed = block.layer
        attention = self.cross.EncDecAttention
        self.heads = attention.n_heads
        self.there = [self._split(f(hidden)) for f in (attention.k, attention.v)]
        n, heads, _, width = self.there[0].shape
        self.here = [torch.zeros(n, heads, longest, width) for _ in range(2)]

    def __call__(
        self, x: Tensor, step: int, distance: Tensor, unseen: Tensor
    ) -> Tensor:
        """Read one more token of each answer, ``(m, 1, d)``."""
        attention, normal = self.own.SelfAttention, self.own.layer_norm(x)
        for kept, f in zip(self.here, (attention.k, attention.v), strict=True):
            kept[:, :, step] = self._split(f(normal))[:, :, 0]
        keys, values = (kept[:, :, : step + 1] for kept in self.here)
        x = x + self._attend(attention, normal, keys, values, distance)
        attention, normal = self.cross.EncDecAttention, self.cross.layer_norm(x)
        keys, values = self.there
        x = x + self._attend(attention, normal, keys, values, unseen)
        result: Tensor = self.feed(x)
        return result

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        self.here = [kept[rows] for kept in self.here]
        self.there = [kept[rows] for kept in self.there]

    def _attend(
        self, attention: Any, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Tensor:
        # T5 does not divide by the square root of the width.
        scores = self._split(attention.q(x)) @ keys.transpose(-2, -1) + bias
        mixed = scores.softmax(dim=-1) @ values  # (m, heads, 1, width)
        result: Tensor = attention.o(mixed.transpose(1, 2).flatten(2))
        return result

    def _split(self, x: Tensor) -> Tensor:
        """``(m, t, heads * width)`` to ``(m, heads, t, width)``."""
        parts: Tensor = x.unflatten(-1, (self.heads, -1))
        return parts.transpose(1, 2)


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
