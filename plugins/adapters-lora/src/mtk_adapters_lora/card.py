"""The README of a new adapter: what it is, what it was made of, how to load it."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

import mtk
from mtk_adapters_lora.components import part_of
from mtk_adapters_lora.configured import pipeline_names

if TYPE_CHECKING:
    from mtk_adapters_lora.result import NewAdapter

_PEFT = 'model = peft.PeftModel.from_pretrained(model, "{folder}")'
_PIPELINE = 'pipeline.load_lora_weights("{folder}")'
_MODEL = 'model.load_lora_adapter("{folder}", prefix=None)'


def card(adapter: NewAdapter, folder: str, dtype: str) -> str:
    """The card, in Markdown."""
    library = "peft" if adapter.file_format == "peft" else "diffusers"
    front = ["---", f"library_name: {library}", "tags: [lora, merge, mtk]", "---", ""]
    ranks = {update.rank for update in adapter.updates.values()}
    span = str(max(ranks)) if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    lines = [
        "# LoRA adapter made with mtk",
        "",
        f"{len(adapter.updates)} modules of rank {span}, {dtype}, by mtk {mtk.__version__}.",
        "The scale is inside the factors (alpha = rank).",
        f"Truncation lost {adapter.relative_error:.3g} of the update (relative, Frobenius).",
        *(f"Note: {note}." for note in adapter.notes),
        "",
        "## Made of",
        "",
        *_sources(adapter),
        "",
        "`manifest.json` has all settings, and the hashes of inputs and outputs.",
        "Nothing here was checked for safety.",
        "",
        "## Use",
        "",
        f"    {_usage(adapter).format(folder=folder)}",
        "",
        "Load it on the base of its inputs; no name of a base is stored here.",
    ]
    return "\n".join(front + lines) + "\n"


def _sources(adapter: NewAdapter) -> list[str]:
    """Names without folders: where files lay is nobody else's business."""
    made = adapter.provenance
    if "combination" in made:
        given = [
            f"- {PurePath(entry['path']).name}, weight {_weight(entry['weight'])}"
            for entry in made["adapters"]
        ]
        return [f"Combination `{made['combination']}` of", "", *given]
    what = [PurePath(str(made.get(key, "?"))).name for key in ("tuned", "base")]
    return [f"Extracted from {what[0]} minus {what[1]}."]


def _weight(weight: object) -> str:
    return f"{weight:g}" if isinstance(weight, float) else "per module"


def _usage(adapter: NewAdapter) -> str:
    if adapter.file_format == "peft":
        return _PEFT
    parts = {part_of(name, "diffusers") for name in pipeline_names(adapter)}
    return _PIPELINE if parts - {""} else _MODEL
