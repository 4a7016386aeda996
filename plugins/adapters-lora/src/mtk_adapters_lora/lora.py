"""Opening LoRA adapters: PEFT folders, diffusers files and Kohya files.

``products`` (also called ``tensors``) shows base plus update under the base's names;
``factors`` shows A and B themselves, in PEFT's names, without their scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.checkpoint import describe
from mtk.errors import CheckpointError
from mtk_adapters_lora.components import select
from mtk_adapters_lora.formats import load_adapter, looks_like_lora
from mtk_adapters_lora.names import place
from mtk_adapters_lora.products import Products

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from mtk.adapters import Checkpoint
    from mtk.declare import TensorInfo
    from mtk_adapters_lora.adapter import LoraAdapter

PARTS = {"linear": ("lora_A.weight", "lora_B.weight")}
PARTS |= {
    "conv": PARTS["linear"],
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}


def matches(path: Path) -> bool:
    """Whether this is an adapter. Reads file names and at most one header."""
    return looks_like_lora(path)


def open(  # noqa: A001  the adapter contract names it so
    path: Path,
    *,
    view: str = "tensors",
    base: Checkpoint | None = None,
    component: str | None = None,
) -> Checkpoint:
    """Open lazily.

    Args:
        path: a folder or a safetensors file.
        view: ``products`` (or ``tensors``) or ``factors``.
        base: the model the adapter was trained on. Products need it; with it, factors
            are named as its weights are.
        component: only this part of a file for several models, for example ``unet``; of
            an adapter without named parts, the component of a pipeline it belongs to.
    """
    adapter = load_adapter(path)
    if component is not None:
        adapter = select(adapter, component, base)
    if view == "factors":
        return Factors(adapter, base)
    if view not in ("products", "tensors"):
        raise CheckpointError(f"no view {view!r} of a LoRA adapter: products, factors")
    if base is None:
        raise CheckpointError(
            f"{path} is a LoRA adapter: it holds changes, not a model\n"
            "Give the model it was trained on as well (--base)"
        )
    return Products(adapter, base)


def build(path: Path) -> nn.Module:
    """Refuse: an adapter alone cannot run."""
    raise CheckpointError(
        f"{path} is a LoRA adapter and cannot run alone\nMerge it into its base first"
    )


class Factors:
    """A and B of every module, and whatever else the adapter holds."""

    kind = "lora"

    def __init__(self, adapter: LoraAdapter, base: Checkpoint | None = None) -> None:
        self.label = adapter.label
        self._adapter = adapter
        where = place(adapter, base) if base is not None else {}
        self._keys: dict[str, str] = {}
        self.scales: dict[str, float] = {}
        for name, module in adapter.modules.items():
            stem = where[name].removesuffix(".weight") if where else name
            self.scales[stem] = module.scale
            for part, key in zip(PARTS[module.kind], (module.a, module.b), strict=True):
                self._keys[f"{stem}.{part}"] = key
            if module.bias:
                self._keys[f"{stem}.lora_B.bias"] = module.bias
            if module.magnitude:
                self._keys[f"{stem}.lora_magnitude_vector"] = module.magnitude
        self._keys |= adapter.whole

    def names(self) -> list[str]:
        """Module and part, sorted."""
        return sorted(self._keys)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype as stored."""
        import torch

        stored = self._adapter.source.info(self._keys[name])
        return describe(name, stored.shape, getattr(torch, stored.dtype))

    def read(self, name: str) -> Tensor:
        """The factor as stored."""
        return self._adapter.read(self._keys[name])
