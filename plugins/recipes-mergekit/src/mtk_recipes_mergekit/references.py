"""Names of models, with a revision or with a LoRA adapter that is folded in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk_recipes_mergekit.keys import given, known, text, word

if TYPE_CHECKING:
    from mtk_recipes_mergekit.document import Item


@dataclass(frozen=True, slots=True)
class Reference:
    """A model: folder or name, revision, and a LoRA adapter that is folded into it."""

    path: str
    revision: str | None = None
    lora: str | None = None
    where: str = field(default="", compare=False)


def reference(item: Item) -> Reference:
    """A model's name: ``path``, ``path@revision``, ``path+lora``, or these as keys."""
    if not item.is_mapping:
        model, plus, lora = word(item).partition("+")
        path, revision = _at(model, item)
        return _checked(Reference(path, revision, lora if plus else None, item.where))
    keys = known(item, "a model", ("model", "lora", "override_architecture"))
    if other := given(keys, "override_architecture"):
        raise UsageError(f"{other.where}: override_architecture is not supported")
    path, revision = _path(keys["model"]) if "model" in keys else ("", None)
    adapter = given(keys, "lora")
    if adapter is None:
        return _checked(Reference(path, revision, None, item.where))
    folder, version = _path(adapter)
    if version:
        raise UsageError(
            f"{adapter.where}: a revision of a LoRA adapter is not supported"
        )
    return _checked(Reference(path, revision, folder, item.where))


def _path(item: Item) -> tuple[str, str | None]:
    if not item.is_mapping:
        return _at(word(item), item)
    keys = known(item, "a model", ("path", "revision"))
    return text(keys.get("path")) or "", text(keys.get("revision"))


def _at(name: str, item: Item) -> tuple[str, str | None]:
    path, at, revision = name.partition("@")
    if "@" in revision or (at and not revision):
        raise UsageError(
            f"{item.where}: {name!r} is no model; write NAME or NAME@REVISION"
        )
    return path, revision or None


def _checked(found: Reference) -> Reference:
    lora = found.lora
    if not found.path or lora == "" or (lora and ("+" in lora or "@" in lora)):
        raise UsageError(
            f"{found.where}: this is no model; write PATH, PATH@REVISION or PATH+LORA"
        )
    return found
