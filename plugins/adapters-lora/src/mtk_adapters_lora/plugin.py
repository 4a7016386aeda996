"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk

if TYPE_CHECKING:
    from collections.abc import Iterator


@mtk.hookimpl
def mtk_adapters() -> Iterator[mtk.Adapter]:
    yield mtk.Adapter(
        name="lora",
        target="mtk_adapters_lora.lora",
        summary="Low-rank adapters of a base: PEFT folders, diffusers and Kohya files",
        kind="lora",
        views=("products", "factors"),
        formats=(
            "PEFT folder (adapter_config.json, adapter_model.safetensors)",
            "diffusers file or folder (pytorch_lora_weights.safetensors)",
            "Kohya file (lora_unet_*.lora_down.weight ...)",
        ),
    )
