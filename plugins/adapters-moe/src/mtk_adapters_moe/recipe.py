"""Recipes for upcycling: the YAML files of mergekit-moe, read strictly.

A setting that is unknown here is refused with its line. What the files leave out has
mergekit's default: routers from the states that enter a layer (``gate_mode: hidden``).
Other than there, padding never counts as part of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped,unused-ignore]  # has no types of its own

from mtk.errors import UsageError, first_line
from mtk.parameters import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Both keep the time that reading takes within a second.
MOST_BYTES = 200_000
MOST_DEPTH = 20
_MODEL = {"source_model", "positive_prompts", "residual_scale"}
_EXPERT = {*_MODEL, "negative_prompts", "noise_scale"}
_TOP = {
    "base_model",
    "dtype",
    "experts",
    "experts_per_token",
    "gate_mode",
    "shared_experts",
}
# mergekit calls a model NAME+LORA where an adapter is to be added first.
_JOINED = "+"


@dataclass(frozen=True, slots=True)
class _Node:
    """A value and the line it stands on."""

    value: Any
    line: int


def read(path: Path) -> dict[str, Any]:
    """The arguments of :func:`mtk_adapters_moe.upcycle`, but for the output."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path}: larger than {MOST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
        _check_events(path, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        top = _table(_convert(root, path), path, "the file", _TOP)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: not valid YAML: {first_line(error)}") from error
    return _arguments(path, top)


def _check_events(path: Path, text: str) -> None:
    """Refuse what expands or nests without end, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{path}: aliases (*NAME) are not taken; write it out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise UsageError(f"{path} nests deeper than {MOST_DEPTH} levels")


def _convert(node: yaml.Node | None, path: Path) -> _Node:
    if isinstance(node, yaml.MappingNode):
        table: dict[str, _Node] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in table:
                raise UsageError(f"{path}, line {line}: {name!r} stands twice")
            table[name] = _Node(_convert(value, path).value, line)
        return _Node(table, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        items = [_convert(item, path) for item in node.value]
        return _Node(items, node.start_mark.line + 1)
    if node is None:
        return _Node(None, 1)
    loader = yaml.SafeLoader("")
    try:
        return _Node(loader.construct_object(node), node.start_mark.line + 1)
    except ValueError as error:
        raise UsageError(f"{path}, line {node.start_mark.line + 1}: {error}") from error


def _table(node: _Node, path: Path, what: str, known: set[str]) -> dict[str, _Node]:
    if not isinstance(node.value, dict):
        raise UsageError(
            f"{path}, line {node.line}: {what} must be a table of settings"
        )
    table: dict[str, _Node] = node.value
    for name, entry in table.items():
        if name not in known:
            raise UsageError(
                f"{path}, line {entry.line}: {what} has no setting {name!r}"
                f"{suggestion(name, known)}\nSettings: {', '.join(sorted(known))}"
            )
    return table


def _arguments(path: Path, top: Mapping[str, _Node]) -> dict[str, Any]:
    experts = _models(path, top, "experts", _EXPERT)
    shared = _models(path, top, "shared_experts", _MODEL)
    if not experts:
        raise UsageError(f"{path} names no experts")
    if len(shared) > 1:
        line = top["shared_experts"].line
        raise UsageError(f"{path}, line {line}: at most one shared expert is possible")
    numbers = {
        key: [_number(path, expert, key, default) for expert in experts]
        for key, default in (("noise_scale", 0.0), ("residual_scale", 1.0))
    }
    result: dict[str, Any] = {
        "donor": _text(path, top, "base_model"),
        "experts": [_text(path, expert, "source_model") for expert in experts],
        "gate": _text(path, top, "gate_mode", "hidden"),
        "prompts": [_texts(path, expert, "positive_prompts") for expert in experts],
        "negative_prompts": [_texts(path, e, "negative_prompts") for e in experts],
        **numbers,
    }
    if "experts_per_token" in top:
        result["top_k"] = top["experts_per_token"].value
    if "dtype" in top:
        result["dtype"] = _text(path, top, "dtype")
    if shared:
        result["shared_expert"] = _text(path, shared[0], "source_model")
        result["shared_prompts"] = _texts(path, shared[0], "positive_prompts")
        result["shared_scale"] = _number(path, shared[0], "residual_scale", 1.0)
    return result


def _models(
    path: Path, top: Mapping[str, _Node], key: str, known: set[str]
) -> list[dict[str, _Node]]:
    node = top.get(key, _Node([], 1))
    if node.value is None:
        return []
    if not isinstance(node.value, list):
        raise UsageError(f"{path}, line {node.line}: {key} must be a list of models")
    return [_table(item, path, f"an entry of {key}", known) for item in node.value]


_NONE = object()


def _text(
    path: Path, table: Mapping[str, _Node], key: str, default: Any = _NONE
) -> str:
    node = table.get(key)
    if node is None:
        if default is _NONE:
            line = min((entry.line for entry in table.values()), default=1)
            raise UsageError(f"{path}, line {line}: {key} is missing")
        return str(default)
    if not isinstance(node.value, str) or not node.value:
        raise UsageError(f"{path}, line {node.line}: {key} must be a text")
    if key in ("base_model", "source_model") and _JOINED in node.value:
        raise UsageError(
            f"{path}, line {node.line}: {node.value!r} names a model and a LoRA\n"
            "Merge the LoRA into its model first, and name the result"
        )
    return node.value


def _texts(path: Path, table: Mapping[str, _Node], key: str) -> list[str]:
    node = table.get(key)
    if node is None or node.value is None:
        return []
    items = node.value if isinstance(node.value, list) else [node]
    if not all(isinstance(item.value, str) for item in items) or items == [node]:
        raise UsageError(f"{path}, line {node.line}: {key} must be a list of texts")
    return [item.value for item in items]


def _number(path: Path, table: Mapping[str, _Node], key: str, default: float) -> float:
    node = table.get(key)
    if node is None or node.value is None:
        return default
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        raise UsageError(f"{path}, line {node.line}: {key} must be a number")
    return float(node.value)
