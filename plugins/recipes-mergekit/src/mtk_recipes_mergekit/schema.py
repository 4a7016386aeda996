"""The shape of a mergekit configuration, checked key by key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk.parameters import suggestion
from mtk_recipes_mergekit.document import Item
from mtk_recipes_mergekit.keys import entries, given, known, text
from mtk_recipes_mergekit.references import Reference, reference
from mtk_recipes_mergekit.settings import parse_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtk_recipes_mergekit.settings import Setting

_TOP = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype",
    "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name",
)  # fmt: skip
_DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A model of a merge, all of it or the layers of a range."""

    model: Reference
    params: Mapping[str, Setting]
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Layers of the result."""

    inputs: tuple[Input, ...]
    base: Reference | None
    params: Mapping[str, Setting]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One document."""

    name: str
    method: Item
    base: Reference | None
    inputs: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    module_params: Mapping[str, Setting]
    params: Mapping[str, Setting]
    dtype: str | None
    out_dtype: str | None
    tokenizer: Item | None
    notes: tuple[str, ...]
    where: str


def parse(item: Item) -> Config:
    """One document as a configuration.

    Raises:
        UsageError: a key is unknown, missing or of the wrong kind.
    """
    top = known(item, "a recipe", _TOP)
    if "merge_method" not in top:
        raise UsageError(f"{item.where}: no merge_method (such as linear, ties, slerp)")
    method = top["merge_method"]
    if not isinstance(method.value, str):
        raise UsageError(f"{method.where}: merge_method is the name of a method")
    notes: list[str] = []
    body, module_params = _body(top, item, notes)
    models, slices = given(body, "models"), given(body, "slices")
    if (models is None) == (slices is None):
        raise UsageError(
            f"{item.where}: write one of models, slices and modules, with at least one entry"
        )
    if template := given(top, "chat_template"):
        raise UsageError(
            f"{template.where}: chat_template is not supported yet; take the line out, and\n"
            "set the template in the result's tokenizer"
        )
    return Config(
        name=text(top.get("name")) or "",
        method=method,
        base=_optional_reference(top),
        inputs=tuple(_model(entry) for entry in entries(models)),
        slices=tuple(_slice(entry, notes) for entry in entries(slices)),
        module_params=module_params,
        params=parse_settings(top.get("parameters")),
        dtype=_dtype(top.get("dtype")),
        out_dtype=_dtype(top.get("out_dtype")),
        tokenizer=_tokenizer(top),
        notes=tuple(notes),
        where=item.where,
    )


def _body(
    top: Mapping[str, Item], item: Item, notes: list[str]
) -> tuple[Mapping[str, Item], Mapping[str, Setting]]:
    """Where models or slices stand: at the top, or in the one module."""
    modules = given(top, "modules")
    if modules is None:
        return top, {}
    if given(top, "models") or given(top, "slices"):
        raise UsageError(f"{item.where}: write only one of models, slices and modules")
    if not modules.is_mapping or len(modules.value) != 1:
        raise UsageError(
            f"{modules.where}: recipes with several modules are not supported\n"
            "Merge the parts of the model one by one, with models or slices"
        )
    name, module = next(iter(modules.value.items()))
    body = known(module, "a module", ("models", "slices", "parameters"))
    notes.append(f"{module.where}: module {name!r} is taken as the whole model")
    return body, parse_settings(body.get("parameters"))


def _model(item: Item) -> Input:
    keys = known(item, "a model", ("model", "parameters"))
    return Input(
        model=_named(keys, item), params=parse_settings(keys.get("parameters"))
    )


def _slice(item: Item, notes: list[str]) -> Slice:
    allowed = ("sources", "base_model", "residual_weight", "parameters")
    keys = known(item, "a slice", allowed)
    if weight := given(keys, "residual_weight"):
        notes.append(f"{weight.where}: residual_weight has no effect, as in mergekit")
    inputs = tuple(_source(entry) for entry in entries(given(keys, "sources")))
    if not inputs:
        raise UsageError(f"{item.where}: a slice without sources")
    if len({end - start for start, end in (_range(i) for i in inputs)}) > 1:
        raise UsageError(
            f"{item.where}: the sources of a slice need equally many layers"
        )
    return Slice(
        inputs=inputs,
        base=_optional_reference(keys),
        params=parse_settings(keys.get("parameters")),
        where=item.where,
    )


def _range(source: Input) -> tuple[int, int]:
    assert source.layers is not None
    return source.layers


def _source(item: Item) -> Input:
    keys = known(item, "a source", ("model", "layer_range", "parameters"))
    place = keys.get("layer_range", item)
    numbers = [entry.value for entry in entries(keys.get("layer_range"))]
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    if len(numbers) != 2 or not whole or not 0 <= numbers[0] < numbers[1]:
        raise UsageError(
            f"{place.where}: layer_range is [first layer, layer behind the last], "
            "such as [0, 16]"
        )
    return Input(
        model=_named(keys, item),
        params=parse_settings(keys.get("parameters")),
        layers=(numbers[0], numbers[1]),
    )


def _named(keys: Mapping[str, Item], item: Item) -> Reference:
    if "model" not in keys:
        raise UsageError(f"{item.where}: no 'model' here")
    return reference(keys["model"])


def _optional_reference(keys: Mapping[str, Item]) -> Reference | None:
    base = given(keys, "base_model")
    return None if base is None else reference(base)


def _tokenizer(top: Mapping[str, Item]) -> Item | None:
    """What the tokenizer comes from: an item with a word or a model."""
    source, block = given(top, "tokenizer_source"), given(top, "tokenizer")
    if source is not None and block is not None:
        raise UsageError(
            f"{block.where}: write tokenizer_source or tokenizer, not both"
        )
    if block is None:
        return source
    keys = known(block, "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
    for name in ("tokens", "pad_to_multiple_of"):
        if item := given(keys, name):
            raise UsageError(
                f"{item.where}: {name} of a tokenizer is not supported; take it out, and\n"
                "change the tokenizer and the embeddings of the result"
            )
    return given(keys, "source") or Item("union", block.where)


def _dtype(item: Item | None) -> str | None:
    name = text(item)
    if name is None:
        return None
    name = name.removeprefix("torch.")
    if name not in _DTYPES:
        assert item is not None
        raise UsageError(
            f"{item.where}: unknown dtype {name!r}{suggestion(name, _DTYPES)}\n"
            f"Known: {', '.join(_DTYPES)}"
        )
    return name
