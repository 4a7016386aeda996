"""Random numbers that do not depend on order, sharding or threads."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def stream(seed: int, *names: object) -> torch.Generator:
    """A CPU generator that is a pure function of ``seed`` and ``names``."""
    text = "\0".join(map(str, (seed, *names))).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Random:
    """What a stochastic method receives as ``random``: streams for one tensor.

    Every call with the same expert starts the same stream anew, so that a scan and the
    merge after it see the same draw.
    """

    def __init__(
        self, seed: int, tensor: str = "", masks: Mapping[str, Tensor] | None = None
    ) -> None:
        self._seed, self._tensor, self._masks = seed, tensor, masks

    def generator(self, expert: int | None = None) -> torch.Generator:
        """The stream of this (seed, expert, tensor)."""
        return stream(self._seed, expert, self._tensor)

    def keep_mask(self, expert: int, density: float, like: Tensor) -> Tensor:
        """A mask of ``like``'s shape, each entry kept with probability ``density``.

        Masks that were given to the run (``mask.EXPERT.TENSOR``) replace the draw.
        """
        if self._masks is not None:
            key = f"mask.{expert}.{self._tensor}"
            if key not in self._masks or self._masks[key].shape != like.shape:
                raise CheckpointError(
                    f"the given masks have no {key!r} of {tuple(like.shape)}"
                )
            return self._masks[key].to(device=like.device, dtype=torch.bool)
        draw = torch.rand(like.shape, generator=self.generator(expert))
        return (draw < density).to(like.device)
