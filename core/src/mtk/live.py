"""Running models: tasks with data, linear layers that hooks can see, routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(slots=True, kw_only=True)
class LiveTask:
    """One expert's task, for methods of scope ``model`` and for statistics.

    Args:
        name: of the task.
        module: a model of the checkpoints' architecture; its own weights do not matter.
        forward: (module, inputs) -> logits, shape (n, classes); differentiable.
        inputs: (n, ...); all examples the method may use.
        labels: (n,), only where labelled data were declared.
    """

    name: str
    module: nn.Module
    forward: Callable[[nn.Module, Tensor], Tensor]
    inputs: Tensor
    labels: Tensor | None = None

    def logits(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits of the model whose named weights are replaced by ``tensors``."""
        wrapped = _Forward(self.module, self.forward)
        weights = {f"model.{name}": tensor for name, tensor in tensors.items()}
        result: Tensor = torch.func.functional_call(wrapped, weights, (inputs,))
        return result

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Unlabelled batches for ever: shuffled passes over the inputs."""
        for index in self._indices(size, generator):
            yield self.inputs[index]

    def labelled_batches(
        self, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches with labels, for methods that declared them."""
        if self.labels is None:
            raise CheckpointError(
                f"task {self.name!r}: no labels were declared or given"
            )
        for index in self._indices(size, generator):
            yield self.inputs[index], self.labels[index]

    def _indices(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        count = len(self.inputs)
        while True:
            order = torch.randperm(count, generator=generator)
            whole = count - count % size if count >= size else count
            yield from order[:whole].split(size)


class _Forward(nn.Module):
    def __init__(
        self, model: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self._call = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self._call(self.model, inputs)


class Projection(nn.Module):
    """A linear map whose weight belongs to its parent, so that hooks can see it."""

    def __init__(self, weight_name: str) -> None:
        super().__init__()
        self.weight_name = weight_name

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias``, (..., d_in) -> (..., d_out)."""
        return F.linear(x, weight, bias)


class ExplicitAttention(nn.Module):
    """``nn.MultiheadAttention`` for self-attention, from calls that hooks can see.

    Parameters keep their names (``in_proj_weight``, ``in_proj_bias``, ``out_proj.*``), and
    the fused input projection is one linear layer, as in its checkpoint.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        plain = fused.in_proj_weight is not None and fused.bias_k is None
        if not plain or fused.add_zero_attn or fused.dropout:
            raise CheckpointError(
                "an attention layer with separate, extra or dropped keys"
            )
        self.num_heads, self.batch_first = fused.num_heads, fused.batch_first
        self.in_proj_weight, self.in_proj_bias = (
            fused.in_proj_weight,
            fused.in_proj_bias,
        )
        self.in_proj = Projection("in_proj_weight")
        self.out_proj = fused.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """The signature of ``nn.MultiheadAttention``; no attention weights come back."""
        if (
            key is not query
            or value is not query
            or need_weights
            or any(unused.values())
        ):
            raise CheckpointError(
                "only plain self-attention can be made visible to hooks"
            )
        x = query if self.batch_first else query.transpose(0, 1)
        n, length, width = x.shape
        fused = self.in_proj(
            x, self.in_proj_weight, self.in_proj_bias
        )  # (n, length, 3 width)
        heads = fused.view(n, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(
            0
        )  # (n, heads, length, head width)
        # Written out: torch's fused kernel has no batching rule for per-example gradients.
        scores = (
            q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        )  # (n, heads, length, length)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:  # True means: do not look there
                attn_mask = torch.zeros_like(scores).masked_fill(
                    attn_mask, float("-inf")
                )
            scores = scores + attn_mask
        mixed = scores.softmax(-1) @ v
        result = self.out_proj(mixed.transpose(1, 2).reshape(n, length, width))
        return (result if self.batch_first else result.transpose(0, 1)), None


def expose_linears(model: nn.Module) -> nn.Module:
    """Replace fused attention layers, in place, by equal ones that hooks can see."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, ExplicitAttention(child))
    return model


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name of the weight -> module, for every linear layer that a hook can see."""
    layers: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            layers[f"{path}.weight"] = module
        elif isinstance(module, Projection):
            layers[f"{path.rpartition('.')[0]}.{module.weight_name}"] = module
    return layers


class routed:  # noqa: N801  a context manager, used as a word
    """Context manager: adds a routed result's corrections to a model's linear layers."""

    def __init__(
        self,
        model: nn.Module,
        routing: Mapping[str, Mapping[str, Tensor]],
        route: Callable[..., Tensor],
        params: Mapping[str, Any],
    ) -> None:
        layers = linear_layers(model)
        strange = sorted(set(routing) - set(layers))
        if strange:
            raise CheckpointError(
                f"the model has no linear layer {strange[0]!r} to route"
            )
        self._model, self._route, self._params = model, route, params
        self._places = [(layers[name], parts) for name, parts in routing.items()]
        self._handles: list[Any] = []

    def __enter__(self) -> nn.Module:
        for layer, parts in self._places:
            self._handles.append(layer.register_forward_hook(self._hook(parts)))
        return self._model

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, parts: Mapping[str, Tensor]) -> Callable[..., Tensor]:
        def add(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            return output + self._route(x=arguments[0], parts=parts, **self._params)

        return add
