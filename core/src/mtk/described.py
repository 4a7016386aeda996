"""A checkpoint whose tensors have the roles that its running model gives them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from mtk.checkpoint import settle_roles
from mtk.live import linear_layers
from mtk.views import Renamed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtk.adapters import Checkpoint
    from mtk.declare import TensorInfo


class Described(Renamed):
    """A checkpoint with other descriptions of its tensors."""

    def __init__(self, source: Checkpoint, infos: Mapping[str, TensorInfo]) -> None:
        super().__init__(source, {name: name for name in source.names()})
        self._infos = dict(infos)

    def settle(self) -> None:
        """The roles are those of the running model already."""


def described(source: Checkpoint, module: nn.Module) -> Checkpoint:
    """The source itself, or seen with roles that the module contradicts put right.

    By name and shape every matrix called ``weight`` looks like a linear layer; in a model
    it may be a table of positions, or a convolution over nothing.
    """
    layers = set(linear_layers(module))
    tables = {
        f"{path}.weight"
        for path, part in module.named_modules()
        if isinstance(part, nn.Embedding)
    }
    infos = {name: source.info(name) for name in source.names()}
    odd = [
        name
        for name, info in infos.items()
        if info.role == "linear" and name not in layers
    ]
    if not odd:
        return source
    for name in odd:
        role = "embedding" if name in tables else "other"
        infos[name] = replace(infos[name], role=role)
    return Described(source, settle_roles(infos))
