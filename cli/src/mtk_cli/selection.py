"""From what the user calls a method, a name or a file, to its declaration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk.loading import Provided, load
from mtk_cli import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtk.declare import Method
    from mtk.loading import Registry


def is_file(name: str) -> bool:
    """Whether ``name`` is a path to a one-file plugin rather than a method's name."""
    return name.endswith(".py") or "/" in name or "\\" in name


def registry_for(names: Sequence[str]) -> Registry:
    """All plugins, and those of ``names`` that are files.

    Problems of installed plugins are mentioned; a problem of a named file is an error.
    """
    files = list(dict.fromkeys(Path(name).resolve() for name in names if is_file(name)))
    registry = load(files)
    for file in files:
        for problem in registry.problems:
            if problem.version == "file" and problem.entry_point == file.name:
                raise UsageError(f"{file}: {problem.cause}")
    return registry


def methods_in(registry: Registry, name: str) -> list[Provided[Method]]:
    """The method of that name, or all methods of that file."""
    if not is_file(name):
        return [registry.method(name)]
    stem, file = Path(name).stem, Path(name).name
    found = [
        provided
        for provided in registry.methods
        if (provided.plugin.distribution, provided.plugin.entry_point) == (stem, file)
        and provided.plugin.version == "file"
    ]
    if not found:
        raise UsageError(
            f"{name} offers no method\n"
            "It needs a function mtk_methods, marked @mtk.hookimpl, that yields mtk.Method"
        )
    return found


def one_method(name: str) -> tuple[Registry, Provided[Method]]:
    """The one method that ``name`` stands for."""
    registry = registry_for([name])
    found = methods_in(registry, name)
    if len(found) > 1:
        names = ", ".join(provided.item.name for provided in found)
        raise UsageError(f"{name} offers {len(found)} methods ({names}), not one")
    return registry, found[0]


def mention_problems(registry: Registry) -> None:
    """Point at broken plugins without stopping."""
    count = len(registry.problems)
    if count:
        what = "1 problem" if count == 1 else f"{count} problems"
        render.note(f"{what} with plugins; mtk plugins shows more")
