"""A new adapter in memory: its factors, and how far they are from what was asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk_adapters_lora.adapter import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The factors of one module; the scale is inside them.

    Args:
        a, b: (r, d_in) and (d_out, r), float32.
        error: Frobenius distance of ``b @ a`` to the update before truncation.
        norm: Frobenius norm of that update.
    """

    a: Tensor
    b: Tensor
    kind: Kind = "linear"
    kernel: tuple[int, ...] = ()
    error: float = 0.0
    norm: float = 0.0

    @property
    def rank(self) -> int:
        """Columns of B."""
        return self.a.shape[0]

    @property
    def relative_error(self) -> float:
        """Part of the update that was lost."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(slots=True, kw_only=True)
class NewAdapter:
    """What :func:`combine` and :func:`extract` return.

    Args:
        updates: module name -> factors.
        fan_in_fan_out: the weights are stored as (d_in, d_out).
        file_format: ``peft`` or ``diffusers``.
        component: diffusers only: the part of a pipeline that all modules are in, where
            their names do not say it (as ``unet/conv_in`` does).
        task_type: PEFT's task type, where all inputs agree.
        notes: what the user should know.
        left_out: changed tensors of a full fine-tune that no factor covers -> norm of
            their change.
        provenance: what made it, written beside it.
        inputs: files it was made from, which are never overwritten.
    """

    updates: Mapping[str, Update]
    fan_in_fan_out: bool = False
    task_type: str | None = None
    file_format: str = "peft"
    component: str = ""
    notes: list[str] = field(default_factory=list)
    left_out: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Path] = ()

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(update.rank for update in self.updates.values())

    @property
    def relative_error(self) -> float:
        """Part of the whole update that truncation lost."""
        error = math.sqrt(sum(u.error**2 for u in self.updates.values()))
        norm = math.sqrt(sum(u.norm**2 for u in self.updates.values()))
        return error / norm if norm else 0.0

    def delta(self, module: str) -> Tensor:
        """The update of one module, as its weight is stored."""
        update = self.updates[module]
        dense = update.b @ update.a
        if update.kind == "embedding" or (
            self.fan_in_fan_out and update.kind == "linear"
        ):
            return dense.T
        if update.kind == "conv":
            return dense.view(dense.shape[0], -1, *update.kernel)
        return dense

    def save(
        self, folder: Path | str, *, dtype: str = "float32", overwrite: bool = False
    ) -> Path:
        """Write a new folder that peft or diffusers loads; its name."""
        from mtk_adapters_lora.saving import save

        return save(self, folder, dtype=dtype, overwrite=overwrite)
