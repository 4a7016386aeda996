"""A file of mergekit's as a recipe; several documents are merges that build on each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk_recipes_mergekit.document import read_documents
from mtk_recipes_mergekit.references import reference
from mtk_recipes_mergekit.schema import parse
from mtk_recipes_mergekit.translating import translate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtk.recipes import Recipe
    from mtk_recipes_mergekit.schema import Config


def read(path: Path | str) -> Recipe:
    """Read what ``mergekit-yaml`` or ``mergekit-multi`` runs.

    Raises:
        UsageError: the file is no such recipe, or asks for what mtk cannot do. The
            message names the line.
    """
    path = Path(path)
    configs = [parse(document) for document in read_documents(path)]
    if len(configs) == 1:
        return translate(configs[0], str(path))
    return _staged(configs, path)


def _staged(configs: list[Config], path: Path) -> Recipe:
    named: dict[str, Config] = {}
    for config in configs:
        if config.name in named:
            what = f"the name {config.name!r}" if config.name else "no name"
            raise UsageError(
                f"{config.where}: two merges have {what}\nAll but the last one need a "
                "name of their own"
            )
        named[config.name] = config
    needs = {name: _needed(config, named) for name, config in named.items()}
    final = _final(named, needs)
    order: list[str] = []
    _visit(final.name, needs, named, order, ())
    recipes = [translate(named[name], str(path)) for name in order]
    unused = [
        f"{config.where}: {name} is left out: no other merge uses it"
        for name, config in named.items()
        if name not in order
    ]
    last = recipes[-1]
    return replace(last, stages=tuple(recipes[:-1]), notes=(*last.notes, *unused))


def _needed(config: Config, named: Mapping[str, Config]) -> list[str]:
    """The merges whose results a merge names as models."""
    models = [config.base] if config.base else []
    models += [entry.model for entry in config.inputs]
    for part in config.slices:
        models += [entry.model for entry in part.inputs]
        models += [part.base] if part.base else []
    paths = [model.path for model in models]
    if config.tokenizer and config.tokenizer.value not in {"base", "union"}:
        paths.append(reference(config.tokenizer).path)
    return [path for path in dict.fromkeys(paths) if path in named]


def _final(named: Mapping[str, Config], needs: Mapping[str, list[str]]) -> Config:
    """The merge without a name, or the only one that no other uses."""
    if "" in named:
        return named[""]
    used = {name for found in needs.values() for name in found}
    last = [config for name, config in named.items() if name not in used]
    if len(last) == 1:
        return last[0]
    names = " and ".join(config.name for config in last) or "none"
    where = (last or list(named.values()))[-1].where
    raise UsageError(
        f"{where}: which merge is the result? No other uses: {names}\n"
        "Take the name of that one away"
    )


def _visit(
    name: str,
    needs: Mapping[str, list[str]],
    named: Mapping[str, Config],
    order: list[str],
    above: tuple[str, ...],
) -> None:
    if name in above:
        raise UsageError(
            f"{named[name].where}: {name} needs its own result: "
            f"{' -> '.join([*above[above.index(name) :], name])}"
        )
    for other in needs[name]:
        if other not in order:
            _visit(other, needs, named, order, (*above, name))
    order.append(name)
