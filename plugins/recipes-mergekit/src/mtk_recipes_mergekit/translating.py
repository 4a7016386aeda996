"""From a configuration to a :class:`mtk.recipes.Recipe`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.parameters import suggestion
from mtk.recipes import Recipe, Slab, Source
from mtk_recipes_mergekit.methods import BY_NAME, KNOWN
from mtk_recipes_mergekit.references import reference
from mtk_recipes_mergekit.remarks import Remarks
from mtk_recipes_mergekit.schema import Input
from mtk_recipes_mergekit.sections import section

if TYPE_CHECKING:
    from mtk_recipes_mergekit.document import Item
    from mtk_recipes_mergekit.methods import Row
    from mtk_recipes_mergekit.references import Reference
    from mtk_recipes_mergekit.schema import Config, Slice


def translate(config: Config, file: str) -> Recipe:
    """The recipe that does what mergekit does with a configuration."""
    row = _row(config.method)
    remarks = Remarks(row, config)
    shared: dict[str, Any] = {
        "method": row.ours,
        "name": config.name,
        "dtype": config.out_dtype or config.dtype,
        "donor": _donor(config).path,
        "where": file,
        **_tokenizer(config),
    }
    if config.slices:
        slabs = _slabs(config, row)
        return Recipe(slabs=slabs, notes=remarks.collected(), **shared)
    inputs = list(config.inputs)
    if config.base and all(entry.model != config.base for entry in inputs):
        inputs.append(Input(model=config.base, params={}))
    levels = (config.module_params, config.params)
    found = section(row, inputs, config.base, levels, config.where)
    return Recipe(
        **shared | {"method": found.method},
        experts=tuple(_source(entry.model) for entry in found.experts),
        base=_source(found.base.model) if found.base else None,
        params=found.params,
        notes=remarks.collected(),
    )


def _row(method: Item) -> Row:
    name = method.value
    if name in BY_NAME:
        return BY_NAME[name]
    if name not in KNOWN:
        raise UsageError(
            f"{method.where}: mergekit has no merge_method {name!r}"
            f"{suggestion(name, KNOWN)}\nRead here: {', '.join(BY_NAME)}"
        )
    from mtk.loading import load

    if any(provided.item.name == name for provided in load().methods):
        raise UsageError(
            f"{method.where}: mtk has a method {name}, but does not read its parameters "
            f"from mergekit's recipes\nRun it with: mtk merge --method {name}"
        )
    raise UsageError(
        f"{method.where}: mtk has no method {name} yet\nRead here: {', '.join(BY_NAME)}"
    )


def _slabs(config: Config, row: Row) -> tuple[Slab, ...]:
    slabs: list[Slab] = []
    first = 0
    for part in config.slices:
        slabs.append(_slab(config, row, part, first))
        start, end = part.inputs[0].layers or (0, 0)
        first += end - start
    return tuple(slabs)


def _slab(config: Config, row: Row, part: Slice, first: int) -> Slab:
    levels = (part.params, config.module_params, config.params)
    found = section(
        row, part.inputs, part.base or config.base, levels, part.where, first
    )
    return Slab(
        sources=tuple(
            (_source(entry.model), *(entry.layers or (0, 0))) for entry in found.experts
        ),
        params=found.params,
        method=None if found.method == row.ours else found.method,
        base=_source(found.base.model) if found.base else None,
        base_range=found.base.layers if found.base else None,
        where=part.where,
    )


def _source(model: Reference) -> Source:
    return Source(path=model.path, adapter=model.lora, where=model.where)


def _donor(config: Config) -> Reference:
    """The model whose config is taken: mergekit's base, or the first that is named."""
    if config.base:
        return config.base
    inputs = config.inputs or config.slices[0].inputs
    return inputs[0].model


def _tokenizer(config: Config) -> dict[str, str]:
    item = config.tokenizer
    if item is None:
        return {}
    if item.value == "union":
        return {"tokenizer": "union", "vocabulary": "union"}
    if item.value == "base":
        if config.base is None:
            raise UsageError(f"{item.where}: the tokenizer 'base' needs base_model")
        return {"tokenizer": "base", "vocabulary": "base"}
    model = reference(item)
    if model.lora:
        raise UsageError(
            f"{item.where}: name the folder of a tokenizer, or union, or base"
        )
    return {"tokenizer": model.path}
