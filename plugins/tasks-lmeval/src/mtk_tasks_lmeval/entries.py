"""Entries of a track file: each is checked, or refused with its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.parameters import suggestion
from mtk.recipe_values import check_keys, patterns, tables, text
from mtk_tasks_lmeval.spec import Cell, Kind, Source, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KINDS: tuple[Kind, ...] = ("held_in", "generalization", "ability")
_TEXTS = ("name", "summary", "setting", "base", "multitask", "tokenizer", "adapter")
TOP = (
    *_TEXTS,
    *("merge", "batch_size", "max_length", "chat_template", "dtype", "download"),
    *KINDS,
)
_BOTH = ("name", "metrics", "limit", "validation", "items", "factors")
_TASK = ("task", "num_fewshot", "include_path", "filter")
_DATA = ("data", "normalise", "max_new_tokens", "until")
ADAPTERS = ("full", "lora")
DTYPES = ("float32", "bfloat16", "float16")
HUB = "hf://"


def read_spec(table: Mapping[str, Any], path: Path, *, version: str) -> Spec:
    """The whole file."""
    where = str(path)
    check_keys(table, TOP, where)
    words: dict[str, Any] = {
        key: text(table, key, where) for key in _TEXTS if key in table
    }
    for key in ("name", "base"):
        if key not in words:
            raise UsageError(f"{where}: {key} is missing")
    for key, allowed in (("adapter", ADAPTERS), ("dtype", DTYPES)):
        if key in table:
            words[key] = _one_of(table[key], allowed, f"{where}: {key}")
    for key in ("base", "multitask", "tokenizer"):
        if key in words:
            words[key] = _model(words[key], path)
    words |= {
        key: _whole(table[key], f"{where}: {key}", low=1)
        for key in ("batch_size", "max_length")
        if key in table
    }
    words |= {
        key: _switch(table[key], f"{where}: {key}")
        for key in ("chat_template", "download")
        if key in table
    }
    cells = [
        _cell(entry, kind, path, number)
        for kind in KINDS
        for number, entry in enumerate(tables(table, kind, where), 1)
    ]
    if not any(cell.kind == "held_in" for cell in cells):
        raise UsageError(
            f"{where}: no [[held_in]] cell; each has an expert, and one is needed"
        )
    words.setdefault("summary", f"The track of {path.name}")
    return Spec(
        path=path,
        cells=tuple(cells),
        version=version,
        merge=patterns(table.get("merge", ["*"]), f"{where}: merge"),
        **words,
    )


def _cell(table: Mapping[str, Any], kind: Kind, path: Path, number: int) -> Cell:
    where = f"{path}: {kind} {number}"
    given = _one_source(table, kind, where)
    name = text(table, "name", where)
    where = f"{path}: cell {name!r}"
    cell = Cell(
        name=name,
        kind=kind,
        source=given,
        items=given.label,
        metrics=("accuracy",),
        validation=0.2 if kind == "held_in" else 0.0,
    )
    if given.data is not None:
        cell = replace(cell, source=_file(given.data, path, f"{where}: data"))
    elif "metrics" not in table:
        raise UsageError(
            f"{where}: metrics is missing; name one of the task's, for example ['acc']"
        )
    changes = {
        field: read(table[key], f"{where}: {key}")
        for key, (field, read) in _READERS.items()
        if key in table
    }
    if kind == "held_in":
        changes["expert"] = _model(text(table, "expert", where), path)
    if "validation" in table:
        value = table["validation"]
        changes["validation"] = _validation(value, cell.source, path, where)
    if "include_path" in table:
        changes["include"] = tuple(
            _folder(name, path, f"{where}: include_path")
            for name in patterns(table["include_path"], f"{where}: include_path")
        )
    return replace(cell, **changes)


def _one_source(table: Mapping[str, Any], kind: Kind, where: str) -> Source:
    """Its task or its file; the keys that go with the other are refused."""
    expert = ("expert",) if kind == "held_in" else ()
    if kind != "held_in" and "expert" in table:
        raise UsageError(
            f"{where}: only [[held_in]] cells have an expert\n"
            "What no expert is trained for is [[generalization]], or [[ability]]"
        )
    if ("task" in table) == ("data" in table):
        if not {"task", "data"} & set(table):
            check_keys(table, (*_BOTH, *expert, *_TASK, *_DATA), where)
        raise UsageError(
            f"{where}: give either task (of lm-evaluation-harness) or data (a JSONL file)"
        )
    more = _TASK if "task" in table else _DATA
    check_keys(table, (*_BOTH, *expert, *more), where)
    if "task" in table:
        return Source(task=text(table, "task", where))
    return Source(data=Path(text(table, "data", where)))


def _validation(value: Any, source: Source, path: Path, where: str) -> float | Source:
    """A share of the items, or other items of the same kind."""
    where = f"{where}: validation"
    if isinstance(value, str) and value:
        if source.data is not None:
            return _file(Path(value), path, where)
        return Source(task=value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        other = "another JSONL file" if source.data else "the name of another task"
        raise UsageError(f"{where} is a share from 0 to below 1, or {other}")
    return float(value)


def _file(name: Path, path: Path, where: str) -> Source:
    place = path.parent / name
    if not place.is_file():
        raise UsageError(f"{where}: there is no file {place}")
    return Source(data=place)


def _folder(name: str, path: Path, where: str) -> Path:
    place = path.parent / name
    if not place.is_dir():
        raise UsageError(f"{where}: there is no folder {place}")
    return place


def _model(name: str, path: Path) -> str:
    """A model's address, or its path from here; whether it is there is seen later."""
    return name if name.startswith(HUB) else str(path.parent / name)


def _one_of(value: Any, allowed: tuple[str, ...], where: str) -> str:
    if not isinstance(value, str) or value not in allowed:
        hint = suggestion(value, allowed) if isinstance(value, str) else ""
        raise UsageError(f"{where} is {value!r}{hint}\nIt may be {', '.join(allowed)}")
    return value


def _whole(value: Any, where: str, *, low: int) -> int:
    if type(value) is not int or value < low:
        raise UsageError(f"{where} is a whole number from {low} on, not {value!r}")
    return value


def _switch(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{where} is true or false, not {value!r}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where} is a text, not {value!r}")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where} is a list of texts")
    return tuple(_text(part, where) for part in value)


def _factors(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} is a table, such as {{skill = 'math'}}")
    return tuple((key, _text(part, f"{where}: {key}")) for key, part in value.items())


_READERS: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "metrics": ("metrics", _texts),
    "limit": ("limit", lambda value, where: _whole(value, where, low=1)),
    "num_fewshot": ("num_fewshot", lambda value, where: _whole(value, where, low=0)),
    "filter": ("filter", _text),
    "items": ("items", _text),
    "factors": ("factors", _factors),
    "normalise": ("normalise", _switch),
    "max_new_tokens": (
        "max_new_tokens",
        lambda value, where: _whole(value, where, low=1),
    ),
    "until": ("until", _texts),
}
