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
    """A model, and a LoRA adapter that is folded into it. A revision follows an ``@``."""

    path: str
    lora: str | None = None
    where: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """As it stands in a recipe."""
        return f"{self.path}+{self.lora}" if self.lora else self.path


def reference(item: Item) -> Reference:
    """A model's name: ``path``, ``path@revision``, ``path+lora``, or these as keys."""
    if not item.is_mapping:
        model, plus, lora = word(item).partition("+")
        return _checked(Reference(model, lora if plus else None, item.where))
    keys = known(item, "a model", ("model", "lora", "override_architecture"))
    if other := given(keys, "override_architecture"):
        raise UsageError(f"{other.where}: override_architecture is not supported")
    path = _path(keys["model"]) if "model" in keys else ""
    adapter = given(keys, "lora")
    return _checked(Reference(path, _path(adapter) if adapter else None, item.where))


def _path(item: Item) -> str:
    if not item.is_mapping:
        return word(item)
    keys = known(item, "a model", ("path", "revision"))
    path, revision = text(keys.get("path")) or "", text(keys.get("revision"))
    return f"{path}@{revision}" if revision else path


def _checked(found: Reference) -> Reference:
    for part in (found.path, found.lora):
        pieces = (part or "").split("@")
        if part is not None and ("+" in part or len(pieces) > 2 or "" in pieces):
            raise UsageError(
                f"{found.where}: {part!r} is no model; write PATH, PATH@REVISION or "
                "PATH+LORA"
            )
    return found
