"""Tied tensors: one matrix under two names, found by looking at the numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.job import Job

# Entries that tell most matrices apart, and entries read at a time to tell the rest.
HEAD, PIECE = 16, 1 << 18


def find_tied(job: Job) -> dict[str, str]:
    """Matrices equal in all checkpoints to an earlier one -> that one's name.

    Such matrices are one tied tensor under two names. They are merged, counted and drawn
    once. Constant matrices are left out: their equality means nothing. Equal means equal
    bytes. Every tensor is read a bounded number of times, however many look alike.
    """
    groups: dict[Any, list[str]] = {}
    for name in job.first.names():
        info = job.first.info(name)
        if len(info.shape) >= 2 and 0 not in info.shape and job.merged(info):
            groups.setdefault((info.shape, info.dtype), []).append(name)
    alike = _split(groups.values(), lambda name: _bytes(_head(job.first, name)))
    alike = ([n for n in names if not _constant(job.first, n)] for names in alike)
    for source in job.sources:
        alike = _split(list(alike), lambda name, s=source: _digest(s, name))
    return {name: first for first, *others in alike for name in others}


def _split(groups: Iterable[list[str]], key: Any) -> Iterator[list[str]]:
    """Groups of at least two names with equal keys; the order of names is kept."""
    for names in groups:
        parts: dict[Any, list[str]] = {}
        for name in names if len(names) > 1 else ():
            parts.setdefault(key(name), []).append(name)
        yield from (part for part in parts.values() if len(part) > 1)


def _head(source: Checkpoint, name: str) -> Tensor:
    """The first entries; as little of the file as possible."""
    return next(_pieces(source, name, HEAD))


def _constant(source: Checkpoint, name: str) -> bool:
    """Whether all entries are equal; most often the first piece says no."""
    first: Tensor | None = None
    for piece in _pieces(source, name, PIECE):
        first = piece[0].clone() if first is None else first
        if not bool((piece == first).all()):
            return False
    return True


def _digest(source: Checkpoint, name: str) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for piece in _pieces(source, name, PIECE):
        digest.update(_bytes(piece))
    return digest.digest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _pieces(source: Checkpoint, name: str, size: int) -> Iterator[Tensor]:
    count = torch.Size(source.info(name).shape).numel()
    if not hasattr(source, "part"):
        yield from source.read(name).flatten().split(size)
        return
    for start in range(0, count, size):
        yield source.part(name, start, min(start + size, count))
