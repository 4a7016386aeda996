"""A model on disk as one checkpoint, whatever files and components it consists of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.model_folders.indexes import check_index

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from mtk.declare import TensorInfo
    from mtk_adapters_full.weights import Weights


class FullCheckpoint:
    """All tensors of a model; those of a component are called ``component/name``.

    Args:
        path: of the model.
        found: component -> its weights.
        roles: gives tensor -> (role, layer) from the model's class, when it is asked for.
    """

    kind = "full"

    def __init__(
        self,
        path: Path,
        found: Mapping[str, Weights],
        roles: Callable[[], Mapping[str, tuple[str, str]]],
    ) -> None:
        self.label = str(path)
        self.files = [file for weights in found.values() for file in weights.files]
        self._roles, self._settled = roles, False
        self._where: dict[str, tuple[SafetensorsCheckpoint, str]] = {}
        self._infos: dict[str, TensorInfo] = {}
        for component, weights in found.items():
            self._add(component, weights)

    def _add(self, component: str, weights: Weights) -> None:
        label = str(weights.folder) if component else self.label
        opened = SafetensorsCheckpoint(weights.files, label)
        if weights.index:
            check_index(weights.index, weights.table, opened.names())
        for inner in opened.names():
            info = opened.info(inner)
            name = f"{component}/{inner}" if component else inner
            if component:
                layer = f"{component}/{info.layer}"
                info = replace(info, name=name, layer=layer)
            self._where[name], self._infos[name] = (opened, inner), info

    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        return self._infos[name]

    def read(self, name: str) -> Tensor:
        """One tensor, backed by the memory map."""
        opened, inner = self._where[name]
        return opened.read(inner)

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end``, counted flat, read into memory of their own."""
        opened, inner = self._where[name]
        return opened.part(inner, start, end)

    def fill(self, name: str, start: int, room: Tensor) -> None:
        """Read entries from ``start`` on into ``room``, until it is full."""
        opened, inner = self._where[name]
        opened.fill(inner, start, room)

    def settle(self) -> None:
        """Take the roles of the model's class instead of those guessed from names.

        Imports the library of the model, which takes seconds; without effect where the
        class cannot be had.
        """
        if self._settled:
            return
        self._settled = True
        for name, (role, layer) in self._roles().items():
            info = self._infos.get(name)
            if info is not None and info.role != "buffer":
                self._infos[name] = replace(info, role=role, layer=layer)
