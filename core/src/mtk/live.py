"""Running models: tasks with data, linear layers that hooks can see, routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtk import batches
from mtk.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mtk.batches import Batch

    Labels = Tensor | Sequence[Any]


@dataclass(slots=True, kw_only=True)
class LiveTask:
    """One expert's task, for methods of scope ``model`` and for statistics.

    Args:
        name: of the task.
        module: a model of the checkpoints' architecture; its own weights do not matter.
        forward: (module, inputs) -> outputs, (n, *positions, C); differentiable.
        inputs: a tensor, or a dict of tensors, (n, ...); all examples that may be used.
        labels: n references, only where labelled data were declared.
        output: what the outputs are, as :class:`mtk.Track` says.
        mask: inputs -> positions that count, bool, (n, *positions); all, if None.
        targets: inputs -> true outputs, only where labelled data were declared.
        gram_mask: (module name, inputs) -> rows of a linear layer's input that count,
            bool, (n, T), or None for all.
    """

    name: str
    module: nn.Module
    forward: Callable[[nn.Module, Any], Tensor]
    inputs: Batch
    labels: Labels | None = None
    output: str = "categorical"
    mask: Callable[[Any], Tensor] | None = None
    targets: Callable[[Any], Tensor] | None = None
    gram_mask: Callable[[str, Any], Tensor | None] | None = None

    def __len__(self) -> int:
        return batches.size(self.inputs)

    def outputs(self, tensors: Mapping[str, Tensor], inputs: Batch) -> Tensor:
        """Outputs of the model whose named weights are replaced by ``tensors``."""
        if self.output == "none":
            raise UsageError(f"task {self.name!r}: its track gives no outputs")
        wrapped = _Forward(self.module, self.forward)
        weights = {f"model.{name}": tensor for name, tensor in tensors.items()}
        result: Tensor = torch.func.functional_call(wrapped, weights, (inputs,))
        return result

    def logits(self, tensors: Mapping[str, Tensor], inputs: Batch) -> Tensor:
        """The outputs, where they are scores of classes; refused where they are not."""
        if self.output != "categorical":
            raise UsageError(
                f"task {self.name!r}: its outputs are {self.output}, no scores of classes"
            )
        return self.outputs(tensors, inputs)

    def counted(self, inputs: Batch) -> Tensor | None:
        """Positions of the outputs that count, bool, (n, *positions); None is all."""
        return None if self.mask is None else self.mask(inputs)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Unlabelled batches for ever: shuffled passes over the inputs."""
        for index in self._indices(size, generator):
            yield batches.take(self.inputs, index)

    def labelled_batches(
        self, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Batch, Labels]]:
        """Batches with labels, for methods that declared them."""
        labels = self.labels
        if labels is None:
            raise CheckpointError(
                f"task {self.name!r}: no labels were declared or given"
            )
        for index in self._indices(size, generator):
            chosen: Labels = (
                labels[index]
                if isinstance(labels, Tensor)
                else [labels[place] for place in index.tolist()]
            )
            yield batches.take(self.inputs, index), chosen

    def _indices(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        count = len(self)
        while True:
            order = torch.randperm(count, generator=generator)
            whole = count - count % size if count >= size else count
            yield from order[:whole].split(size)


class _Forward(nn.Module):
    def __init__(
        self, model: nn.Module, forward: Callable[[nn.Module, Any], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self._call = forward

    def forward(self, inputs: Batch) -> Tensor:
        return self._call(self.model, inputs)


def put_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights; every tensor of the module must be among them.

    A tensor under two names (tied embeddings) may be given under one of them.
    """
    missing, unknown = module.load_state_dict(dict(tensors), strict=False)
    held = module.state_dict(keep_vars=True)
    given = {id(held[name]) for name in tensors if name in held}
    lost = [name for name in missing if id(held[name]) not in given]
    if lost or unknown:
        what = f"{lost[0]!r} is absent" if lost else f"it has no {unknown[0]!r}"
        raise CheckpointError(
            f"the weights do not fit {type(module).__name__}: {what}\n"
            f"({len(lost)} missing, {len(unknown)} extra in all)"
        )


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
            layers[f"{path}.weight".lstrip(".")] = module
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
