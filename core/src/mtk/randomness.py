"""Random numbers that do not depend on order, sharding or threads."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Numbers drawn and thrown away at a time, to reach the middle of a stream.
_SKIPPED = 1 << 16


def stream(seed: int, *names: object) -> torch.Generator:
    """A CPU generator that is a pure function of ``seed`` and ``names``."""
    text = "\0".join(map(str, (seed, *names))).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Random:
    """What a stochastic method receives as ``random``: streams for one tensor.

    Every call with the same expert starts the same stream anew, so that a scan and the
    merge after it see the same draw. Where a method is given slices, :meth:`at` says
    which: a mask goes on where the one of the slice before it ended.
    """

    def __init__(
        self,
        seed: int,
        tensor: str = "",
        masks: Mapping[str, Tensor] | None = None,
        entries: int | None = None,
    ) -> None:
        self._seed, self._tensor, self._masks = seed, tensor, masks
        self._entries, self._start = entries, 0
        self._streams: dict[int, tuple[torch.Generator, int]] = {}

    def at(self, start: int) -> None:
        """Turn to the slice that begins at this entry, counted flat."""
        self._start = start

    def generator(self, expert: int | None = None) -> torch.Generator:
        """The stream of this (seed, expert, tensor)."""
        return stream(self._seed, expert, self._tensor)

    def keep_mask(self, expert: int, density: float, like: Tensor) -> Tensor:
        """A mask of ``like``'s shape, each entry kept with probability ``density``.

        Masks that were given to the run (``mask.EXPERT.TENSOR``) replace the draw.
        """
        if self._masks is not None:
            return self._given(expert, like).to(device=like.device, dtype=torch.bool)
        return (self.draw(expert, like) < density).to(like.device)

    def drop(self, expert: int, density: float, tensor: Tensor) -> Tensor:
        """The tensor with zeros where :meth:`keep_mask` drops an entry."""
        if self._masks is not None or tensor.dtype != torch.float32:
            return torch.where(self.keep_mask(expert, density, tensor), tensor, 0.0)
        # The sign of a difference, spread over all bits, masks faster than a truth value.
        below = self.draw(expert, tensor).sub_(density).view(torch.int32)
        mask = below.bitwise_right_shift_(31).to(tensor.device)
        return mask.bitwise_and_(tensor.view(torch.int32)).view(torch.float32)

    def draw(self, expert: int, like: Tensor) -> Tensor:
        """Numbers from [0, 1) on the CPU, in ``like``'s shape."""
        kept, position = self._streams.get(expert, (None, 0))
        if kept is None or position != self._start:
            kept, position = self.generator(expert), 0
            while position < self._start:
                skipped = min(_SKIPPED, self._start - position)
                torch.rand(skipped, generator=kept, device="cpu")
                position += skipped
        drawn = torch.rand(like.shape, generator=kept, device="cpu")
        self._streams[expert] = kept, position + like.numel()
        return drawn

    def _given(self, expert: int, like: Tensor) -> Tensor:
        key = f"mask.{expert}.{self._tensor}"
        mask = None if self._masks is None else self._masks.get(key)
        whole = self._entries is None or like.numel() == self._entries
        if mask is None or (
            mask.shape != like.shape if whole else mask.numel() != self._entries
        ):
            raise CheckpointError(
                f"the given masks have no {key!r} of {tuple(like.shape)}"
            )
        if whole:
            return mask
        return mask.flatten()[self._start : self._start + like.numel()]
