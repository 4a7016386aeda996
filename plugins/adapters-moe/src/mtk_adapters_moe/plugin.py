"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk

if TYPE_CHECKING:
    from collections.abc import Iterator


@mtk.hookimpl
def mtk_adapters() -> Iterator[mtk.Adapter]:
    yield mtk.Adapter(
        name="moe",
        target="mtk_adapters_moe.moe",
        summary="Mixtures of experts of transformers, expert by expert",
        kind="moe",
        views=("experts", "tensors"),
        formats=(
            "transformers folder with one tensor per expert (Mixtral, Qwen, DeepSeek ...)",
            "transformers folder with fused experts (gate_up_proj, down_proj)",
        ),
    )
