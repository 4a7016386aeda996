"""Which classes a group has: read from a file of the user's, in the order of the head.

The lists are the paper's (``src/data/dataset_reader/domainnet.py`` of its repository) and
are not part of mtk. Either that file lies in the root as ``domainnet.py`` (it is parsed,
never run), or ``groups.json`` says the same::

    {"furniture": ["bathtub", "bed", ...], "mammal": [...], ...}

with all groups in order, and classes spelt like the folders of images.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk_tasks_domainnet.cells import SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mtk_tasks_domainnet.cells import Grid

JSON_NAME = "groups.json"
PYTHON_NAME = "domainnet.py"
_TABLE = "CATEGORIES"
_MOST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of all groups; rows of the joint head are all of them, end to end."""

    groups: Mapping[str, tuple[str, ...]]

    @property
    def rows(self) -> tuple[str, ...]:
        """The class of every row of the joint head."""
        return tuple(name for names in self.groups.values() for name in names)

    @property
    def canonical(self) -> tuple[int, ...]:
        """For every row, the first row of the same class: either one is right."""
        first: dict[str, int] = {}
        rows = self.rows
        for row, name in enumerate(rows):
            first.setdefault(name, row)
        return tuple(first[name] for name in rows)

    def head(self, group: str, scope: str) -> tuple[str, ...]:
        """The classes that the head of a group tells apart."""
        return self.groups[group] if scope == "group" else self.rows


def find(root: Path) -> Path | None:
    """The file that says the groups, if there is one."""
    for name in (JSON_NAME, PYTHON_NAME):
        if (root / name).is_file():
            return root / name
    return None


def read(root: Path, grid: Grid) -> Classes:
    """Read and check the groups.

    Raises:
        UsageError: there is no file, or it is not the grid's.
    """
    file = find(root)
    if file is None:
        raise UsageError(
            f"{root} has neither {JSON_NAME} nor {PYTHON_NAME}, which say the classes of "
            "each group\nPut the paper's src/data/dataset_reader/domainnet.py there"
        )
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        text = file.read_text(encoding="utf-8")
        raw = json.loads(text) if file.name == JSON_NAME else _from_python(text)
        found = {
            SPELLINGS.get(name, name): tuple(str(c) for c in classes)
            for name, classes in raw.items()
        }
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        SyntaxError,
        LookupError,
        RecursionError,
    ) as error:
        raise UsageError(f"{file} could not be read: {error}") from error
    _check(file, found, grid)
    return Classes({name: found[name] for name in grid.groups})


def _check(file: Path, found: Mapping[str, tuple[str, ...]], grid: Grid) -> None:
    if list(found) != list(grid.groups):
        odd = set(found) ^ set(grid.groups)
        what = f"{min(odd)!r} is wrong or missing" if odd else "their order differs"
        raise UsageError(
            f"{file} is to have the {len(grid.groups)} groups of the grid: {what}"
        )
    for name, classes in found.items():
        if len(classes) != grid.groups[name] or len(set(classes)) != len(classes):
            raise UsageError(
                f"{file}: {name} has {len(set(classes))} classes, not {grid.groups[name]}"
            )
        if any("/" in c or c.startswith(".") for c in classes):
            raise UsageError(f"{file}: a class of {name} is no name of a folder")


def _from_python(text: str) -> dict[str, list[str]]:
    """Dicts of literals, by the names that the table gives them; nothing is run."""
    tables: dict[str, list[str]] = {}
    listed: Any = None
    for node in ast.parse(text).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        (name,) = (t.id for t in node.targets if isinstance(t, ast.Name))
        if name == _TABLE:
            listed = node.value
        elif all(isinstance(value, ast.Constant) for value in node.value.values):
            places: dict[str, int] = ast.literal_eval(node.value)
            tables[name] = sorted(places, key=places.__getitem__)
    if listed is None:
        raise ValueError(f"it assigns no {_TABLE}")
    return {
        ast.literal_eval(key): tables[value.id]
        for key, value in zip(listed.keys, listed.values, strict=True)
    }
