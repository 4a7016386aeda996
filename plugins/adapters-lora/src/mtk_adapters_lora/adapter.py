"""One LoRA adapter as its file describes it, whatever the format.

Notation: A is (r, d_in), B is (d_out, r), the update of a weight is ``scale * B @ A``.
A convolution has A (r, c_in, kh, kw) and B (c_out, r, 1, 1); both are flattened from
dimension 1. An embedding has A (r, tokens) and B (width, r), and its update is transposed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.checkpoint import SafetensorsCheckpoint

Kind = Literal["linear", "embedding", "conv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraModule:
    """The update of one module.

    Args:
        name: the module's path, without the decoration of the file format.
        a, b: names of the factors in the file.
        kernel: the kernel of a convolution, else ().
        bias, magnitude: names of the trained bias of B and of DoRA's magnitudes.
    """

    name: str
    a: str
    b: str
    scale: float
    rank: int
    d_in: int
    d_out: int
    kind: Kind = "linear"
    kernel: tuple[int, ...] = ()
    bias: str | None = None
    magnitude: str | None = None


@dataclass(slots=True, kw_only=True)
class LoraAdapter:
    """All updates of one adapter, read lazily.

    Args:
        path: the safetensors file.
        format: ``peft``, ``diffusers`` or ``kohya``.
        modules: by name, in the order of their names.
        whole: parameter of the base -> tensor in the file that replaces it.
        component: the only component of a pipeline it belongs to, where that was said.
    """

    label: str
    path: Path
    format: str
    source: SafetensorsCheckpoint
    modules: Mapping[str, LoraModule]
    whole: Mapping[str, str] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    component: str = ""

    @property
    def files(self) -> list[Path]:
        """What decides what the adapter means: its tensors, PEFT's configuration."""
        beside = self.path.with_name("adapter_config.json")
        peft = self.path.name == "adapter_model.safetensors" and beside.is_file()
        return [self.path, beside] if peft else [self.path]

    def read(self, key: str) -> Tensor:
        """One tensor of the file; NaN and infinity are refused."""
        shape = self.source.info(key).shape
        size = torch.Size(shape).numel()
        # Read into memory of its own: a mapped file would stay in memory as a whole.
        tensor = self.source.part(key, 0, size).view(shape)
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{self.label}: {key!r} contains NaN or infinity")
        return tensor

    def factors(
        self, module: LoraModule, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r), flattened, without the scale."""
        a = self.read(module.a).to(dtype).flatten(1)
        b = self.read(module.b).to(dtype).flatten(1)
        return a, b


def flat_part(source: Checkpoint, name: str, start: int, end: int) -> Tensor:
    """Entries ``start`` to ``end``, counted flat, read alone where the checkpoint can."""
    if hasattr(source, "part"):
        part: Tensor = source.part(name, start, end)
        return part
    return source.read(name).flatten()[start:end]
