"""Reading the configuration of an adapter. Nothing that it names is ever opened.

What changes the meaning of the factors is understood or refused, never passed over.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError
from mtk.model_folders.reading import check_inside, read_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# A rank_pattern with a line for each of 10,000 modules stays below 1 MB.
MAX_CONFIG_BYTES = 10_000_000
# Three unbounded repetitions cost at most the fourth power of a module name's length.
_MAX_REPETITIONS = 3
_MAX_PATTERN = 500
_MAX_MATCHES = 20_000_000
_NUMBERS = {"r": 8, "lora_alpha": 8}
_KNOWN = {
    "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "use_dora",
    "lora_bias", "bias", "modules_to_save", "peft_type", "init_lora_weights",
}  # fmt: skip
# These say how an adapter was trained or where it came from, not what its numbers mean.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "merge_weights", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
    "velora_config",
}  # fmt: skip
# Other starts (PiSSA, OLoRA, CorDA, LoftQ ...) change the base as well.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def read_config(file: Path) -> dict[str, Any]:
    """The checked content of an ``adapter_config.json``."""
    check_inside(file.parent, file)
    config = read_object(file, most=MAX_CONFIG_BYTES, unique=True)
    check_config(config, str(file))
    return config


def check_config(config: Mapping[str, Any], owner: str) -> None:
    """Refuse every setting whose effect on the weights is not reproduced exactly."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(
            f"{owner}: peft_type is {kind!r}; only LORA adapters are read\n"
            "Merge that adapter into its base with peft, and give the merged model"
        )
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{owner}: init_lora_weights is {start!r}, which also changes the base\n"
            "Save it with peft's path_initial_model_for_weight_conversion first"
        )
    odd = [key for key in config if key not in _KNOWN | _HARMLESS | set(_NUMBERS)]
    used = sorted(key for key in odd if config[key] not in (None, False, {}, [], ""))
    if used:
        raise CheckpointError(
            f"{owner}: {used[0]!r} is set, a variant of LoRA that is not reproduced "
            "exactly\nMerge that adapter into its base with peft, and give the merged model"
        )
    for key in ("use_rslora", "fan_in_fan_out", "use_dora", "lora_bias"):
        if config.get(key) not in (None, True, False):
            raise CheckpointError(
                f"{owner}: {key} is {config[key]!r}, not true or false"
            )
    for key, default in _NUMBERS.items():
        _check_number(config.get(key, default), key, owner)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{owner}: {key} is not a table of patterns")
        for pattern, value in patterns.items():
            _check_number(value, f"{key}[{pattern!r}]", owner)


def _check_number(value: object, key: str, owner: str) -> None:
    rank = key == "r" or key.startswith("rank")
    kinds = (int,) if rank else (int, float)
    good = (
        isinstance(value, kinds)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (value >= 1 or not rank)
    )
    if not good:
        what = "a rank of at least 1" if rank else "a finite number"
        raise CheckpointError(f"{owner}: {key} is {value!r}, not {what}")


class Scaling:
    """Rank and scale of each module, as a configuration gives them."""

    def __init__(self, config: Mapping[str, Any], owner: str) -> None:
        self._owner = owner
        self._rank = int(config.get("r", _NUMBERS["r"]))
        self._alpha = float(config.get("lora_alpha", _NUMBERS["lora_alpha"]))
        self._stabilised = bool(config.get("use_rslora"))
        self._ranks = self._compile(config.get("rank_pattern") or {})
        self._alphas = self._compile(config.get("alpha_pattern") or {})
        self._left = _MAX_MATCHES

    def _compile(self, table: Mapping[str, Any]) -> list[tuple[re.Pattern[str], Any]]:
        compiled = []
        for pattern, value in table.items():
            if not _is_tame(pattern):
                raise CheckpointError(
                    f"{self._owner}: the pattern {pattern[:60]!r} is too complex to be "
                    "matched safely"
                )
            try:
                compiled.append((re.compile(rf"(.*\.)?({pattern})$"), value))
            except re.error as error:
                raise CheckpointError(
                    f"{self._owner}: {pattern[:60]!r} is not a pattern: {error}"
                ) from error
        return compiled

    def _find(self, table: list[tuple[re.Pattern[str], Any]], name: str) -> Any:
        self._left -= len(table)
        if self._left < 0:
            raise CheckpointError(f"{self._owner}: too many patterns and modules")
        return next((value for pattern, value in table if pattern.match(name)), None)

    def rank(self, name: str) -> int:
        """The rank of a module; the first pattern that matches decides."""
        found = self._find(self._ranks, name)
        return self._rank if found is None else int(found)

    def scale(self, name: str) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` where it is rank-stabilised."""
        found = self._find(self._alphas, name)
        alpha = self._alpha if found is None else float(found)
        rank = self.rank(name)
        return alpha / (math.sqrt(rank) if self._stabilised else rank)


def _is_tame(pattern: str) -> bool:
    """No nested repetition, no back-reference, few repetitions: polynomial time."""
    return (
        len(pattern) <= _MAX_PATTERN
        and not re.search(r"\)[*+{?]|\\[1-9]|\(\?(?!:)|\{", pattern)
        and len(re.findall(r"(?<!\\)[*+]", pattern)) <= _MAX_REPETITIONS
    )
