"""Recipes in TOML, read and written. ``docs/reference/recipes.md`` is the description."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError, first_line
from mtk.recipe_values import (
    check_keys,
    entries,
    layer_range,
    params_of,
    parse_size,
    patterns,
    size_of,
    tables,
    text,
    value_of,
)
from mtk.recipe_writing import dump
from mtk.recipes import Recipe, Rule, Slab, Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["dump", "parse_size", "read"]

MOST_BYTES = 1_000_000
# The work of tomllib grows with the square of a dotted key's parts.
MOST_DOTS = 2000
_PLAIN = ("method", "dtype", "donor", "tokenizer", "vocabulary")
_KEYS = ("name", *_PLAIN, "base", "experts", "only", "params", "rule", "stack")
_TOP = (*_KEYS, "shard_size", "stage")
_MODEL = ("path", "adapter", "rename")


def read(path: Path) -> Recipe:
    """A recipe. Paths in it are relative to its folder.

    Raises:
        UsageError: not TOML, an unknown key, a value of the wrong type.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES} bytes; no recipe is")
        content = path.read_text("utf-8")
        if any(line.count(".") > MOST_DOTS for line in content.split("\n")):
            raise UsageError(f"{path}: a line with more than {MOST_DOTS} dots")
        table = tomllib.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML recipe: {first_line(error)}") from error
    reader = _Reader(path)
    recipe = reader.recipe(table, str(path), _TOP)
    unused = reader.unused()
    if unused:
        raise UsageError(f"{path}: nothing is made from the stage {unused!r}")
    return recipe


class _Reader:
    """Reads one file; ``where`` names the part of it that is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stages: dict[str, bool] = {}  # earlier ones, and whether they are used
        self._later: set[str] = set()

    def recipe(
        self, table: Mapping[str, Any], where: str, keys: Sequence[str]
    ) -> Recipe:
        """The top of the file, or one stage."""
        check_keys(table, keys, where)
        if "method" not in table:
            raise UsageError(f"{where}: method is missing: say how to merge")
        stages = self._earlier(tables(table, "stage", where), where)
        own, experts = self._experts(table.get("experts", []), where)
        slabs = tuple(
            self._slab(part, f"{where}, stack {number}")
            for number, part in enumerate(tables(table, "stack", where), 1)
        )
        if bool(experts) == bool(slabs):
            raise UsageError(f"{where}: give either experts or [[stack]]")
        texts = ("name", *_PLAIN)
        words = {key: text(table, key, where) for key in texts if key in table}
        return Recipe(
            experts=experts,
            base=self._source(table["base"], f"{where}, base")
            if "base" in table
            else None,
            params=_joined(own, params_of(table, where), where),
            rules=tuple(
                _rule(part, f"{where}, rule {number}")
                for number, part in enumerate(tables(table, "rule", where), 1)
            ),
            only=patterns(table.get("only", ["*"]), f"{where}: only"),
            slabs=slabs,
            stages=stages,
            shard_size=size_of(table.get("shard_size"), f"{where}: shard_size"),
            where=where,
            **self._donor(words, where),
        )

    def _earlier(
        self, tables: Sequence[dict[str, Any]], where: str
    ) -> tuple[Recipe, ...]:
        """The stages of the file, each of which may use those before it."""
        names = [
            text(part, "name", f"{where}, stage {number}")
            for number, part in enumerate(tables, 1)
        ]
        self._later |= set(names)
        stages = []
        for number, (name, part) in enumerate(zip(names, tables, strict=True), 1):
            if name in self._stages:
                raise UsageError(f"{where}: two stages are called {name!r}")
            stages.append(self.recipe(part, f"{where}, stage {number}", _KEYS))
            self._later.discard(name)
            self._stages[name] = False
        return tuple(stages)

    def unused(self) -> str | None:
        """A stage that nothing is made from."""
        return next((name for name, used in self._stages.items() if not used), None)

    def _donor(self, words: dict[str, str], where: str) -> dict[str, Any]:
        donor = words.get("donor")
        if donor is not None and donor != "base":
            words["donor"] = self._resolved(donor, where)
        if words.get("tokenizer", "donor") not in {"donor", "union", "base"}:
            words["tokenizer"] = self._resolved(words["tokenizer"], where)
        return words

    def _resolved(self, name: str, where: str) -> str:
        """The name of a stage, or a path; relative to the recipe if it is there."""
        if name in self._stages:
            self._stages[name] = True
            return name
        beside = self._path.parent / name
        if name in self._later:
            raise UsageError(
                f"{where}: the stage {name!r} is not made yet\n"
                "A stage can use those that stand before it"
            )
        return str(beside) if beside.exists() else name

    def _source(self, value: Any, where: str) -> Source:
        if isinstance(value, str) and value:
            return Source(path=self._resolved(value, where), where=where)
        if not isinstance(value, dict):
            raise UsageError(f"{where}: a model is a path, or a table with a path")
        check_keys(value, _MODEL, where)
        rename = value.get("rename", {})
        if not isinstance(rename, dict) or not all(
            isinstance(text, str) for text in rename.values()
        ):
            raise UsageError(f"{where}: rename is a table of prefixes")
        adapter = text(value, "adapter", where) if "adapter" in value else None
        return Source(
            path=self._resolved(text(value, "path", where), where),
            adapter=self._resolved(adapter, where) if adapter else None,
            rename=rename,
            where=where,
        )

    def _experts(
        self, value: Any, where: str
    ) -> tuple[dict[str, Any], tuple[Source, ...]]:
        """The experts, and the weights that stand beside them."""
        if not isinstance(value, list):
            raise UsageError(f"{where}: experts is a list of models")
        weights, sources = [], []
        for number, item in enumerate(value):
            here = f"{where}, expert {number}"
            table = dict(item) if isinstance(item, dict) else item
            if isinstance(table, dict) and "weight" in table:
                weights.append(value_of(table.pop("weight"), f"{here}: weight"))
            sources.append(self._source(table, here))
        if weights and len(weights) != len(sources):
            raise UsageError(f"{where}: give a weight to every expert, or to none")
        return {"weights": weights} if weights else {}, tuple(sources)

    def _slab(self, table: Mapping[str, Any], where: str) -> Slab:
        check_keys(table, ("experts", "base", "layers", "method", "params"), where)
        items, ranges = [], []
        for number, item in enumerate(entries(table, "experts", where)):
            value, own = _with_layers(item)
            here = f"{where}, expert {number}"
            ranges.append(
                layer_range(table.get("layers") if own is None else own, here)
            )
            items.append(value)
        own_params, sources = self._experts(items, where)
        base, layers = _with_layers(table.get("base"))
        return Slab(
            sources=tuple((s, *r) for s, r in zip(sources, ranges, strict=True)),
            params=_joined(own_params, params_of(table, where), where),
            method=text(table, "method", where) if "method" in table else None,
            base=None if base is None else self._source(base, f"{where}, base"),
            base_range=None
            if layers is None
            else layer_range(layers, f"{where}, base"),
            where=where,
        )


def _with_layers(value: Any) -> tuple[Any, Any]:
    """A model, and the range of layers that stands beside it."""
    if not isinstance(value, dict):
        return value, None
    return {k: v for k, v in value.items() if k != "layers"}, value.get("layers")


def _joined(own: dict[str, Any], params: dict[str, Any], where: str) -> dict[str, Any]:
    if own and "weights" in params:
        raise UsageError(f"{where}: weights stand beside the experts and in params")
    return own | params


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    check_keys(table, ("match", "method", "params"), where)
    rule = Rule(
        match=patterns(table.get("match"), f"{where}: match"),
        method=text(table, "method", where) if "method" in table else None,
        params=params_of(table, where),
        where=where,
    )
    if not rule.method and not rule.params:
        raise UsageError(f"{where}: give a method, or params, or both")
    return rule
