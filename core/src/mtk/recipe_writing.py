"""Recipes written as TOML, so that :func:`mtk.recipe_toml.read` reads them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tomli_w

from mtk.recipes import Choice, Gradient

if TYPE_CHECKING:
    from mtk.recipes import Recipe, Rule, Slab, Source

_USUAL: tuple[tuple[str, Any], ...] = (
    ("only", ("*",)),
    ("dtype", None),
    ("donor", None),
    ("tokenizer", "donor"),
    ("vocabulary", "refuse"),
    ("shard_size", None),
)


def dump(recipe: Recipe) -> str:
    """The recipe as TOML."""
    return tomli_w.dumps(_table(recipe))


def _table(recipe: Recipe) -> dict[str, Any]:
    table: dict[str, Any] = {"name": recipe.name} if recipe.name else {}
    table["method"] = recipe.method
    if recipe.base is not None:
        table["base"] = _model(recipe.base)
    if recipe.experts:
        table["experts"] = [_model(source) for source in recipe.experts]
    for key, usual in _USUAL:
        value = getattr(recipe, key)
        if value != usual:
            table[key] = list(value) if isinstance(value, tuple) else value
    table |= _params(recipe.params)
    if recipe.rules:
        table["rule"] = [_rule(rule) for rule in recipe.rules]
    if recipe.slabs:
        table["stack"] = [_stack(slab, recipe.base) for slab in recipe.slabs]
    if recipe.stages:
        table["stage"] = [_table(stage) for stage in recipe.stages]
    return table


def _rule(rule: Rule) -> dict[str, Any]:
    table: dict[str, Any] = {"match": list(rule.match)}
    return (
        table | ({"method": rule.method} if rule.method else {}) | _params(rule.params)
    )


def _stack(slab: Slab, shared: Source | None) -> dict[str, Any]:
    table: dict[str, Any] = {
        "experts": [_model(source, (s, e)) for source, s, e in slab.sources]
    }
    table |= {"method": slab.method} if slab.method else {}
    base = slab.base or (shared if slab.base_range else None)
    if base is not None:
        table["base"] = _model(base, slab.base_range)
    return table | _params(slab.params)


def _model(source: Source, layers: tuple[int, int] | None = None) -> Any:
    table: dict[str, Any] = {"path": source.path}
    table |= {"layers": list(layers)} if layers else {}
    table |= {"adapter": source.adapter} if source.adapter else {}
    table |= {"rename": dict(source.rename)} if source.rename else {}
    return table if len(table) > 1 else source.path


def _params(params: Any) -> dict[str, Any]:
    plain = {key: _plain(value) for key, value in params.items() if value is not None}
    return {"params": plain} if plain else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Gradient):
        return {"gradient": list(value.points)}
    if isinstance(value, Choice):
        # Pairs: the order of the keys of a table would be lost.
        return {"choice": [[pattern, _plain(case)] for pattern, case in value.cases]}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
