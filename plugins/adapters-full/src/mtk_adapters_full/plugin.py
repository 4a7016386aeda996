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
        summary="All weights of a model: files, and folders of the usual libraries",
        kind="full",
        formats=(
            "NAME.safetensors",
            "folder of transformers (config.json), single or sharded",
            "pipeline folder of diffusers (model_index.json), or one of its components",
            "folder of open_clip (open_clip_config.json)",
            "folder of sentence-transformers (modules.json)",
            "any folder with one safetensors model in it",
        ),
    )
