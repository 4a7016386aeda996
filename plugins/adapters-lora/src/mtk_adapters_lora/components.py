"""The parts of an adapter for a pipeline, and the components of the base they belong to.

A pipeline's tensors are called ``unet/conv_in.weight``. Its adapters call the same part
``unet`` (diffusers), ``lora_unet`` (Kohya), or nothing at all (PEFT).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from mtk.errors import CheckpointError
from mtk_adapters_lora.keys import KOHYA

if TYPE_CHECKING:
    from mtk.adapters import Checkpoint
    from mtk_adapters_lora.adapter import LoraAdapter

_DIFFUSERS = re.compile(r"(unet|transformer|text_encoder|controlnet|prior)(_\d)?")
_KOHYA = {
    "lora_unet": ("unet", "transformer"),
    "lora_te": ("text_encoder",),
    "lora_te1": ("text_encoder",),
    "lora_te2": ("text_encoder_2",),
    "lora_te3": ("text_encoder_3",),
}


def part_of(name: str, file_format: str) -> str:
    """``unet`` of ``unet.down.0`` in a diffusers file, ``lora_unet`` in a Kohya file."""
    if file_format == "kohya":
        match = KOHYA.match(name)
        return match[0].rstrip("_") if match else ""
    first = name.partition(".")[0]
    known = file_format == "diffusers" and _DIFFUSERS.fullmatch(first)
    return first if known else ""


def parts_of(adapter: LoraAdapter) -> set[str]:
    """All parts of an adapter; ``""`` for one that names none."""
    return {part_of(name, adapter.format) for name in adapter.modules}


def homes(part: str) -> tuple[str, ...]:
    """The components of a pipeline that a part may belong to; () where any will do."""
    if part in _KOHYA:
        return _KOHYA[part]
    return (part,) if _DIFFUSERS.fullmatch(part) else ()


def components_of(base: Checkpoint) -> set[str]:
    """Components of a pipeline; none for a single model."""
    return {name.partition("/")[0] for name in base.names() if "/" in name}


def select(
    adapter: LoraAdapter, component: str, base: Checkpoint | None = None
) -> LoraAdapter:
    """The modules for one component; all, where the adapter names no parts.

    Those are then looked for in that component of the base only.
    """
    kept = {
        name: module
        for name, module in adapter.modules.items()
        if component in (part := part_of(name, adapter.format), *homes(part))
    }
    if kept and component:
        return replace(adapter, modules=kept)
    parts = sorted(parts_of(adapter) - {""})
    if not parts and base is not None and component in components_of(base):
        return replace(adapter, component=component)
    raise CheckpointError(
        f"{adapter.label}: no component {component!r}; it has "
        f"{', '.join(parts) or 'a single one without a name'}"
    )
