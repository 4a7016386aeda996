"""Fused experts of a running model, taken apart so that hooks see every projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


def separate_experts(model: nn.Module) -> nn.Module:
    """Replace fused experts, in place, by equal ones with a module per projection.

    Left as they are: experts that are stored transposed, have biases, or treat the gate
    in a way of their own.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _plain(child):
                setattr(module, name, SeparateExperts(child))
    return model


def _plain(module: nn.Module) -> bool:
    """Whether the experts are ``down(act(gate(x)) * up(x))``, with gate rows first."""
    both, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    weights = isinstance(both, nn.Parameter) and isinstance(down, nn.Parameter)
    gate = getattr(type(module), "_apply_gate", None)
    return (
        weights
        and getattr(module, "is_concatenated", False)
        and not getattr(module, "is_transposed", True)
        and not getattr(module, "has_bias", True)
        and not getattr(module, "has_post_expert_norm", False)
        and getattr(gate, "__module__", "") == "transformers.integrations.moe"
        and callable(getattr(module, "act_fn", None))
    )


class SeparateExperts(nn.ModuleList):
    """Experts one by one, called as the fused module is called."""

    def __init__(self, fused: nn.Module) -> None:
        both: Tensor = fused.gate_up_proj.detach()  # type: ignore[operator]
        down: Tensor = fused.down_proj.detach()  # type: ignore[operator]
        act: Callable[[Tensor], Tensor] = fused.act_fn  # type: ignore[assignment]
        super().__init__(
            _Expert(one[: len(one) // 2], one[len(one) // 2 :], two, act)
            for one, two in zip(both, down, strict=True)
        )

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        """(tokens, d), (tokens, k), (tokens, k) -> (tokens, d)."""
        result = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, slot = (top_k_index == number).nonzero(as_tuple=True)
            if len(token):
                value = expert(hidden_states[token]) * top_k_weights[token, slot, None]
                result = result.index_add(0, token, value.to(result.dtype))
        return result


class _Expert(nn.Module):
    def __init__(
        self, gate: Tensor, up: Tensor, down: Tensor, act: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = _linear(gate), _linear(up)
        self.down_proj = _linear(down)
        self._act = act

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.down_proj(self._act(self.gate_proj(x)) * self.up_proj(x))
        return value


def _linear(weight: Tensor) -> nn.Linear:
    """A linear layer around a weight (d_out, d_in); no memory is taken."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
