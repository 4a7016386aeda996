"""Texts as bytes: token = byte + 3, as ByT5 counts, so that no vocabulary is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

PAD, END = 0, 1
_OFFSET = 3  # after padding, end, and a token for the unknown, which bytes never need
VOCABULARY = 256 + _OFFSET


def encode(texts: Sequence[str]) -> Tensor:
    """Return the tokens of n texts, each with its end, int64 ``(n, longest)``.

    >>> encode(["ab", "c"]).tolist()
    [[100, 101, 1], [102, 1, 0]]
    """
    rows = [[byte + _OFFSET for byte in text.encode()] + [END] for text in texts]
    tokens = torch.full((len(rows), max(map(len, rows), default=0)), PAD)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return tokens


def decode(tokens: Tensor) -> list[str]:
    """Return the texts of ``(n, length)`` tokens, each up to its end.

    Bytes that are no UTF-8 become the replacement character.
    """
    texts = []
    for row in tokens.tolist():
        whole = row[: row.index(END)] if END in row else row
        raw = bytes(token - _OFFSET for token in whole if token >= _OFFSET)
        texts.append(raw.decode(errors="replace"))
    return texts


def shifted(answers: Tensor) -> Tensor:
    """Return what the decoder reads when it is to say the answers, ``(n, length)``."""
    return torch.cat([torch.full_like(answers[:, :1], PAD), answers[:, :-1]], dim=1)
