"""Recipes in TOML, read and written. ``docs/reference/recipes.md`` is the description."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

import tomli_w

from mtk.errors import UsageError, first_line
from mtk.parameters import suggestion
from mtk.recipes import Choice, Gradient, Recipe, Rule, Slab, Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MOST_BYTES = 1_000_000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_PLAIN = ("method", "dtype", "donor", "tokenizer", "vocabulary")
_KEYS = (*_PLAIN, "name", "base", "experts", "only", "shard_size", "params", "rule")
_TOP = (*_KEYS, "stack", "stage")


def read(path: Path) -> Recipe:
    """A recipe. Paths in it are relative to its folder.

    Raises:
        UsageError: not TOML, an unknown key, a value of the wrong type.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES} bytes; no recipe is")
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML recipe: {first_line(error)}") from error
    return _Reader(path).recipe(table, str(path), _TOP)


class _Reader:
    """Reads one file; ``where`` names the part of it that is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stages: set[str] = set()

    def recipe(
        self, table: Mapping[str, Any], where: str, keys: Sequence[str]
    ) -> Recipe:
        """The top of the file, or one stage."""
        _known(table, keys, where)
        if not isinstance(table.get("method"), str):
            raise UsageError(f"{where}: method is missing: say how to merge")
        stages = []
        for number, part in enumerate(_tables(table, "stage", where), 1):
            here = f"{where}, stage {number}"
            if not isinstance(part.get("name"), str):
                raise UsageError(f"{here}: name is missing")
            stages.append(self.recipe(part, here, (*_KEYS, "stack")))
            self._stages.add(part["name"])
        own, experts = self._experts(table.get("experts", []), where)
        slabs = tuple(
            self._slab(part, f"{where}, stack {number}")
            for number, part in enumerate(_tables(table, "stack", where), 1)
        )
        if bool(experts) == bool(slabs):
            raise UsageError(f"{where}: give either experts or [[stack]]")
        words = {key: _text(table, key, where) for key in _PLAIN if key in table}
        base = table.get("base")
        return Recipe(
            experts=experts,
            base=None if base is None else self._source(base, f"{where}, base"),
            params=own | _params(table, where),
            rules=tuple(
                _rule(part, f"{where}, rule {number}")
                for number, part in enumerate(_tables(table, "rule", where), 1)
            ),
            only=_patterns(table.get("only", ["*"]), f"{where}: only"),
            slabs=slabs,
            stages=tuple(stages),
            name=table.get("name", ""),
            shard_size=_bytes(table.get("shard_size"), where),
            where=where,
            **self._donor(words),
        )

    def _donor(self, words: dict[str, str]) -> dict[str, Any]:
        donor = words.get("donor")
        if donor is not None and donor != "base":
            words["donor"] = self._resolved(donor)
        if words.get("tokenizer", "donor") not in {"donor", "union", "base"}:
            words["tokenizer"] = self._resolved(words["tokenizer"])
        return words

    def _resolved(self, text: str) -> str:
        """A path relative to the recipe, where there is something at it."""
        beside = self._path.parent / text
        return str(beside) if text not in self._stages and beside.exists() else text

    def _source(self, value: Any, where: str) -> Source:
        if isinstance(value, str):
            return Source(path=self._resolved(value), where=where)
        if not isinstance(value, dict):
            raise UsageError(f"{where}: a model is a path, or a table with a path")
        _known(value, ("path", "rename"), where)
        rename = value.get("rename", {})
        if not isinstance(rename, dict) or not all(
            isinstance(text, str) for text in rename.values()
        ):
            raise UsageError(f"{where}: rename is a table of prefixes")
        path = self._resolved(_text(value, "path", where))
        return Source(path=path, rename=rename, where=where)

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
                weights.append(_value(table.pop("weight"), f"{here}: weight"))
            sources.append(self._source(table, here))
        if not weights:
            return {}, tuple(sources)
        if len(weights) != len(sources):
            raise UsageError(f"{where}: give a weight to every expert, or to none")
        return {"weights": weights}, tuple(sources)

    def _slab(self, table: Mapping[str, Any], where: str) -> Slab:
        _known(table, ("experts", "base", "layers", "method", "params"), where)
        found = []
        for number, item in enumerate(_list(table, "experts", where)):
            here = f"{where}, expert {number}"
            value = dict(item) if isinstance(item, dict) else item
            own = value.pop("layers", None) if isinstance(value, dict) else None
            start, end = _layers(own or table.get("layers"), here)
            found.append((self._source(value, here), start, end))
        base = table.get("base")
        return Slab(
            sources=tuple(found),
            params=_params(table, where),
            method=table.get("method"),
            base=None if base is None else self._source(base, where),
            where=where,
        )


def _known(table: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise UsageError(
                f"{where}: unknown key {key!r}{suggestion(key, keys)}\n"
                f"Known here: {', '.join(keys)}"
            )


def _tables(table: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(t, dict) for t in found):
        raise UsageError(f"{where}: write [[{key}]] tables")
    return found


def _list(table: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = table.get(key)
    if not isinstance(found, list) or not found:
        raise UsageError(f"{where}: {key} is a list, and not empty")
    return found


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: {key} is a text")
    return value


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(text, str) for text in found)
    ):
        raise UsageError(f"{where}: write one pattern of tensor names, or a list")
    return tuple(found)


def _layers(value: Any, where: str) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or [type(v) for v in value] != [int, int]
        or not 0 <= value[0] < value[1]
    ):
        raise UsageError(f"{where}: layers is [first, end], the end excluded")
    return value[0], value[1]


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    _known(table, ("match", "method", "params"), where)
    return Rule(
        match=_patterns(table.get("match"), f"{where}: match"),
        method=table.get("method"),
        params=_params(table, where),
        where=where,
    )


def _params(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = table.get("params", {})
    if not isinstance(given, dict):
        raise UsageError(f"{where}: params is a table")
    return {key: _value(value, f"{where}: {key}") for key, value in given.items()}


def _value(value: Any, where: str) -> Any:
    """A plain value, ``{gradient = [...]}``, ``{choice = {...}}`` or a list of them."""
    if isinstance(value, list):
        return [_value(item, where) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"gradient"}:
        points = value["gradient"]
        if (
            not isinstance(points, list)
            or not points
            or not all(
                isinstance(p, int | float) and not isinstance(p, bool) for p in points
            )
        ):
            raise UsageError(f"{where}: a gradient is a list of numbers")
        return Gradient(tuple(float(point) for point in points))
    if set(value) == {"choice"} and isinstance(value["choice"], dict):
        cases = value["choice"].items()
        return Choice(tuple((key, _value(case, where)) for key, case in cases))
    raise UsageError(
        f"{where}: write a value, {{gradient = [...]}} or {{choice = {{pattern = ...}}}}"
    )


def _bytes(value: Any, where: str) -> int | None:
    if value is None or type(value) is int:
        return value
    return parse_size(value, where) if isinstance(value, str) else _no_size(where)


def parse_size(text: str, where: str) -> int:
    """``5GB`` as a number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    return size if size > 0 else _no_size(where)


def _no_size(where: str) -> int:
    raise UsageError(f"{where}: a size is a number of bytes, such as 500MB or 5GB")


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
    for key, usual in (
        ("only", ("*",)),
        ("dtype", None),
        ("donor", None),
        ("tokenizer", "donor"),
        ("vocabulary", "refuse"),
        ("shard_size", None),
    ):
        value = getattr(recipe, key)
        if value != usual:
            table[key] = list(value) if isinstance(value, tuple) else value
    if recipe.params:
        table["params"] = _plain(recipe.params)
    if recipe.rules:
        table["rule"] = [
            {"match": list(r.match)}
            | ({"method": r.method} if r.method else {})
            | {"params": _plain(r.params)}
            for r in recipe.rules
        ]
    if recipe.slabs:
        table["stack"] = [_stack(slab) for slab in recipe.slabs]
    if recipe.stages:
        table["stage"] = [_table(stage) for stage in recipe.stages]
    return table


def _stack(slab: Slab) -> dict[str, Any]:
    table: dict[str, Any] = {
        "experts": [
            {"path": source.path, "layers": [start, end]}
            | ({"rename": dict(source.rename)} if source.rename else {})
            for source, start, end in slab.sources
        ]
    }
    table |= {"method": slab.method} if slab.method else {}
    table |= {"base": _model(slab.base)} if slab.base else {}
    return table | ({"params": _plain(slab.params)} if slab.params else {})


def _model(source: Source) -> Any:
    if source.rename:
        return {"path": source.path, "rename": dict(source.rename)}
    return source.path


def _plain(value: Any) -> Any:
    if isinstance(value, Gradient):
        return {"gradient": list(value.points)}
    if isinstance(value, Choice):
        return {"choice": {pattern: _plain(case) for pattern, case in value.cases}}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return value
