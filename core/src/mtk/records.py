"""Records: one small JSON file per measured configuration, named by what decides it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCHEMA = 2
# Raise this when a change of the protocol's own code changes results.
PROTOCOL = "2"


def key_of(identity: Mapping[str, Any]) -> str:
    """Hash of everything that decides a result."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def path_of(folder: Path, identity: Mapping[str, Any]) -> Path:
    """Where the record of that identity is or will be."""
    name = str(identity["method"]).replace(":", ".")
    return (
        folder
        / str(identity["track"])
        / f"{name}-s{identity['seed']}-{key_of(identity)}.json"
    )


def write(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write a record under a temporary name and rename it."""
    path = path_of(folder, record["identity"])
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n"
    replace_file(path, [text.encode()])
    return path


def sheet_of(path: Path) -> Path:
    """Where the picture that belongs to a record is, if it has one."""
    return path.with_suffix(".png")


def write_sheet(folder: Path, identity: Mapping[str, Any], picture: bytes) -> Path:
    """Write a picture beside its record, whole or not at all."""
    path = sheet_of(path_of(folder, identity))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [picture])
    return path


def read(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none that can be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return None
    return record


def source_hash(target: Any) -> str:
    """Hash of the source that a target names, and of what it imports from its package.

    Nothing is imported but the parent packages. So a change in one method's module makes
    that method's records stale, and adding a method beside it does not.
    """
    module = target.partition(":")[0] if isinstance(target, str) else target.__module__
    digest = hashlib.sha256()
    for name, text in sorted(_sources(module)):
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()[:16]


def _sources(module: str) -> Iterator[tuple[str, str]]:
    package, pending, seen = module.partition(".")[0], [module], set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        text = _source(name)
        if text is not None:
            yield name, text
            pending += [
                found for found in _imports(text) if found.split(".")[0] == package
            ]


def _source(module: str) -> str | None:
    """The text of a module, found without importing it."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is not None:
        return _text(Path(loaded))
    top, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    if not parts:
        return _text(origin)
    path = origin.parent.joinpath(*parts)
    return _text(path.with_suffix(".py")) or _text(path / "__init__.py")


def _text(path: Path) -> str | None:
    return path.read_text() if path.suffix == ".py" and path.is_file() else None


def _imports(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
