"""The network that the checks run: two linear layers around a norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Network(nn.Module):
    """``head(relu(norm(hidden(x))))``, built to hold exactly the tensors of a state.

    Tensors that the network does not use are kept under their names.

    Args:
        state: at least ``hidden``, ``norm`` and ``head``, each a weight and a bias.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        classes, width = state["head.weight"].shape
        self.hidden = nn.Linear(state["hidden.weight"].shape[1], width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for name, tensor in state.items():
            self._hold(name, tensor.detach().clone())

    def _hold(self, name: str, tensor: Tensor) -> None:
        path, _, last = name.rpartition(".")
        owner: nn.Module = self
        for part in filter(None, path.split(".")):
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if tensor.is_floating_point():
            owner.register_parameter(last, nn.Parameter(tensor))
        else:
            owner.register_buffer(last, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, classes), of inputs (n, d_in)."""
        logits: Tensor = self.head(torch.relu(self.norm(self.hidden(x))))
        return logits
