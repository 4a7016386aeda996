"""Importing a LoRA adapter that someone else trained."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.errors import CheckpointError, UsageError
from mtk.folders import put_file
from mtk.roots import finish

if TYPE_CHECKING:
    from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<which>[AB])\.weight"
)


def adopt(source: Path, unet: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Check an adapter against the UNet's attention, and copy it as a whole.

    Raises:
        CheckpointError: a factor has no counterpart, or another shape.
    """
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise UsageError(
                f"{source} has no {name}; adapters are folders as PEFT writes"
            )
    base = SafetensorsCheckpoint(sorted(unet.glob("*.safetensors"))[:1], str(unet))
    known = set(base.names())
    adapter = SafetensorsCheckpoint([source / WEIGHTS], str(source))
    for name in adapter.names():
        match = _FACTOR.fullmatch(name)
        weight = f"{match['module']}.weight" if match else ""
        if match is None or weight not in known or ".attn" not in weight:
            raise CheckpointError(
                f"{source}: {name!r} is no LoRA factor of an attention projection of the UNet"
            )
        d_out, d_in = base.info(weight).shape[:2]
        shape = adapter.info(name).shape
        if (shape[1] if match["which"] == "A" else shape[0]) != (
            d_in if match["which"] == "A" else d_out
        ):
            raise CheckpointError(f"{source}: {name!r} is {shape}, which does not fit")
    try:
        config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{source / CONFIG} is damaged: {error}") from error

    def fill(work: Path) -> None:
        put_file(work, CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())
        put_file(work, WEIGHTS, source / WEIGHTS)

    finish(folder, fill, facts)
