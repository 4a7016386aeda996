"""The contract between an adapter and everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from mtk.declare import TensorInfo


@runtime_checkable
class Checkpoint(Protocol):
    """A model opened lazily: names first, one tensor at a time on request.

    A LoRA adapter seen through its *products* is a checkpoint too (base plus ``s B A``,
    computed when it is read), and so is an MoE seen expert by expert.
    """

    label: str
    kind: str

    def names(self) -> Sequence[str]:
        """Tensor names, sorted."""

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role, from headers only."""

    def read(self, name: str) -> Tensor:
        """The tensor, memory-mapped where possible. Callers must not change it."""


class AdapterTarget(Protocol):
    """What the target of an :class:`mtk.Adapter` provides."""

    def matches(self, path: Path) -> bool:
        """Whether this adapter opens what is at ``path``. Reads no weights."""

    def open(
        self, path: Path, *, view: str = "tensors", base: Checkpoint | None = None
    ) -> Checkpoint:
        """Open lazily. Adapters that store differences need the ``base``."""

    def build(self, path: Path) -> nn.Module:
        """A runnable model without gradients, in evaluation mode.

        Its parameters have the names of the checkpoint, and every linear layer is a
        module that hooks can see (:func:`mtk.live.expose_linears`).
        """
