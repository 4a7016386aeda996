"""What a new adapter says about itself: PEFT's configuration, diffusers' metadata."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from mtk_adapters_lora.components import part_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtk_adapters_lora.result import NewAdapter, Update

# Loaders of today remove this name of CLIP's text model; patterns match ends of paths.
_TEXT_MODEL = "text_model."


def peft_config(adapter: NewAdapter) -> dict[str, Any]:
    """The ``adapter_config.json`` of a new adapter."""
    ranks = {name: update.rank for name, update in adapter.updates.items()}
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "modules_to_save": None,
        **_described(ranks),
    }


def pipeline_names(adapter: NewAdapter) -> dict[str, Update]:
    """The updates under the names that a diffusers pipeline loads."""
    lead = f"{adapter.component}." if adapter.component else ""
    return {
        name.replace("/", ".", 1) if "/" in name else f"{lead}{name}": update
        for name, update in adapter.updates.items()
    }


def diffusers_metadata(updates: Mapping[str, Update]) -> dict[str, Any]:
    """One configuration for each part of a pipeline, flat, as diffusers reads them.

    Without it, some versions of diffusers scale all modules by the rank of the first.
    """
    ranks: dict[str, dict[str, int]] = defaultdict(dict)
    for name, update in updates.items():
        part = part_of(name, "diffusers")
        inner = name.removeprefix(f"{part}.") if part else name
        ranks[part][inner.removeprefix(_TEXT_MODEL)] = update.rank
    return {
        f"{part}.{key}" if part else key: value
        for part, found in ranks.items()
        for key, value in _described(found).items()
    }


def _described(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Ranks and target modules; alpha is the rank everywhere."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    names = sorted(ranks)
    patterns = _patterns(names)
    odd = {patterns[name]: rank for name, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": _targets(names),
    }


def _endings(names: list[str]) -> set[str]:
    """All proper ends of the paths, at dots."""
    return {
        name.split(".", cut)[-1]
        for name in names
        for cut in range(1, name.count(".") + 1)
    }


def _patterns(names: list[str]) -> dict[str, str]:
    """PEFT matches ends of paths; ``^`` keeps a short name from matching others."""
    endings = _endings(names)
    alike = Counter(name.replace(".", "_") for name in names)
    patterns = {}
    for name in names:
        exact = alike[name.replace(".", "_")] > 1
        pattern = re.escape(name) if exact else name
        patterns[name] = f"^{pattern}" if name in endings else pattern
    return patterns


def _targets(names: list[str]) -> list[str] | str:
    """A list is matched by the ends of paths as well, a string as a whole."""
    if not _endings(names) & set(names):
        return names
    return "|".join(re.escape(name) for name in names)
