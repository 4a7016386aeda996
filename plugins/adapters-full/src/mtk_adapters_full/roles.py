"""Roles of tensors, read from the modules of the model's class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from mtk_adapters_full.classes import current_names, empty_model, family_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from mtk.declare import TensorInfo
    from mtk_adapters_full.weights import Weights

Roles = dict[str, tuple[str, str]]


def roles_of(
    found: Mapping[str, Weights], infos: Mapping[str, TensorInfo]
) -> dict[str, tuple[str, str]]:
    """Tensor -> (role, layer), of the components whose class can be had."""
    roles: Roles = {}
    for component, weights in found.items():
        start = f"{component}/" if component else ""
        inner = {
            name.removeprefix(start): info.shape
            for name, info in infos.items()
            if name.startswith(start) and "/" not in name.removeprefix(start)
        }
        known = _component(weights.folder, weights.stem, inner)
        roles |= {
            start + name: (role, start + layer) for name, (role, layer) in known.items()
        }
    return roles


def _component(folder: Path, stem: str, shapes: Mapping[str, tuple[int, ...]]) -> Roles:
    try:
        model = empty_model(folder, family_of(folder, stem))
        names = _class_names(model, shapes)
    except Exception:
        return {}  # no class, or one that cannot be made from this config: names decide
    known = _modules(model)
    stored = {there: name for name, there in names.items()}
    roles: Roles = {}
    for name, there in names.items():
        role, layer = known.get(there, ("", there))
        if role and _same_shape(model, there, shapes[name]):
            roles[name] = role, stored.get(layer, name)
    return roles


def _same_shape(model: nn.Module, name: str, shape: tuple[int, ...]) -> bool:
    """Experts that the class fuses are stored one by one: their module says nothing."""
    try:
        return tuple(model.get_parameter(name).shape) == shape
    except AttributeError:
        return False


def _modules(model: nn.Module) -> Roles:
    """Parameter of the class -> (role, layer)."""
    head = _head(model)
    roles: Roles = {}
    for path, module in model.named_modules():
        for last, _ in module.named_parameters(recurse=False):
            name = f"{path}.{last}" if path else last
            roles[name] = _role(module, path, last, is_head=module is head)
    return roles


def _head(model: Any) -> nn.Module | None:
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return head if isinstance(head, nn.Module) else None


def _role(module: nn.Module, path: str, last: str, *, is_head: bool) -> tuple[str, str]:
    name, kind = f"{path}.{last}" if path else last, type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        if last.endswith("bias"):
            return "bias", name.removesuffix("bias") + "weight"
        return "linear", name
    linear = isinstance(module, nn.Linear) or kind == "Conv1D"
    if linear and last == "bias":
        return "bias", f"{path}.weight"
    if linear and last == "weight":
        transposed = "linear_t" if kind == "Conv1D" else "linear"
        return ("head" if is_head else transposed), name
    if "Norm" in kind:
        return "norm", name
    if last == "weight" and (isinstance(module, nn.Embedding) or "Embedding" in kind):
        return "embedding", name
    if last == "weight" and "Conv" in kind:
        return "conv", name
    # A weight of a module of its own kind, such as a router: its shape says more.
    return "" if last == "weight" else "other", name


def _class_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Name in the file -> name in the class, for the tensors that the class has.

    Files may leave the prefix of the inner model out, and libraries rename parts of old
    files when they load them; they are asked for what they do.
    """
    there = dict(model.state_dict())
    today = current_names(model, {name: name for name in names})
    found = {name: new for new, name in today.items() if new in there}
    missing = [name for new, name in today.items() if new not in there]
    if not missing or not hasattr(model, "base_model_prefix"):
        return found
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    prefix = model.base_model_prefix or None
    for name in missing:
        new, _ = rename_source_key(name, renamings, converters, prefix, there)
        if new in there:
            found[name] = new
    return found
