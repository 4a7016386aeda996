"""What this distribution offers to mtk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mtk

if TYPE_CHECKING:
    from collections.abc import Iterator


@mtk.hookimpl
def mtk_adapters() -> Iterator[mtk.Adapter]:
    yield mtk.Adapter(
        name="full",
        target="mtk_adapters_full.full",
        summary="All weights of a model: safetensors files, sharded folders, open_clip folders",
        kind="full",
        formats=(
            "NAME.safetensors",
            "folder with model.safetensors",
            "folder with *.safetensors.index.json",
            "open_clip folder (open_clip_config.json)",
        ),
    )
