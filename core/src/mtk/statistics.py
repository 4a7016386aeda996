"""Statistics of one expert on its own task: diagonal Fisher and Gram matrices.

Both run the expert through :class:`mtk.live.LiveTask`, whatever its architecture, and are
accumulated in float64. A tensor that a statistic does not reach is absent from the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.func import grad, jacrev, vmap

from mtk.errors import UsageError
from mtk.live import linear_layers
from mtk.randomness import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from mtk.live import LiveTask

# Per-example gradients of this many bytes are held at a time.
_GRADIENT_BYTES = 256 << 20
_BATCH = 256
ESTIMATORS = ("exact", "sampled", "empirical", "argmax")


def collect(
    name: str,
    task: LiveTask,
    tensors: Mapping[str, Tensor],
    *,
    seed: int = 0,
    examples: int = 1000,
    **params: Any,
) -> dict[str, Tensor]:
    """Compute a statistic.

    Args:
        name: ``fisher`` or ``gram``.
        task: the expert's task; its data are drawn without replacement.
        tensors: the expert's weights. Fisher is taken of the floating-point ones.
        seed: of the order of the examples, and of sampled labels.
        examples: most inputs used.
        params: ``estimator`` for ``fisher``.

    Returns:
        tensor name -> statistic, float32, as ``PARAMETERS.md`` lays the files out.
    """
    order = torch.randperm(
        len(task.inputs), generator=stream(seed, "examples", task.name)
    )
    chosen = order[:examples]
    if not len(chosen):
        raise UsageError(
            f"task {task.name!r} has no examples for the statistic {name!r}"
        )
    if name == "gram":
        return gram(task, tensors, chosen)
    if name == "fisher":
        return fisher(task, tensors, chosen, seed=seed, **params)
    raise UsageError(f"no statistic named {name!r}")


def gram(
    task: LiveTask, tensors: Mapping[str, Tensor], chosen: Tensor
) -> dict[str, Tensor]:
    """X^T X / T of the input rows X (T, d_in) of every linear layer (arXiv 2212.09849)."""
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(_: object, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].detach().flatten(0, -2).double()  # (T, d_in)
            sums[name] = sums.get(name, torch.zeros(())) + x.T @ x
            rows[name] = rows.get(name, 0) + len(x)

        return add

    layers = linear_layers(task.module)
    handles = [
        layer.register_forward_pre_hook(watch(name))
        for name, layer in layers.items()
        if name in tensors
    ]
    try:
        with torch.no_grad():
            for part in chosen.split(_BATCH):
                task.logits(tensors, task.inputs[part])
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / rows[name]).float() for name, total in sums.items()}


def fisher(
    task: LiveTask,
    tensors: Mapping[str, Tensor],
    chosen: Tensor,
    *,
    estimator: str = "exact",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Diagonal Fisher information, per-example squares averaged (arXiv 2111.09832).

    ``exact`` sums over all classes weighted by their probability, ``sampled`` draws one
    class per example from the model, ``empirical`` takes the label, ``argmax`` the most
    likely class.
    """
    weights = {
        name: tensor.detach().float()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }

    def log_probabilities(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.log_softmax(task.logits(values, x[None])[0].float(), dim=-1)

    def chosen_log_probability(
        values: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        return log_probabilities(values, x).gather(0, y[None])[0]

    with torch.no_grad():
        first = task.logits(weights, task.inputs[chosen[:1]])
    classes = first.shape[-1] if estimator == "exact" else 1
    size = sum(tensor.numel() * 4 for tensor in weights.values()) * classes
    sums = {
        name: torch.zeros_like(tensor, dtype=torch.float64)
        for name, tensor in weights.items()
    }
    generator = stream(seed, "sampled labels", task.name)
    for part in chosen.split(max(1, min(_BATCH, _GRADIENT_BYTES // size))):
        x = task.inputs[part]
        with torch.no_grad():
            p = task.logits(weights, x).float().softmax(-1)  # (n, classes)
        if estimator == "exact":
            jacobian = vmap(jacrev(log_probabilities), in_dims=(None, 0))(weights, x)
            for name, j in jacobian.items():  # (n, classes, *shape)
                sums[name] += torch.einsum("nc,nc...->...", p, j.square()).double()
            continue
        y = _labels(estimator, task, part, p, generator)
        gradients = vmap(grad(chosen_log_probability), in_dims=(None, 0, 0))(
            weights, x, y
        )
        for name, g in gradients.items():  # (n, *shape)
            sums[name] += g.square().sum(0).double()
    return {
        name: (total / len(chosen)).float()
        for name, total in sums.items()
        if bool(total.any())
    }


def _labels(
    estimator: str, task: LiveTask, part: Tensor, p: Tensor, generator: torch.Generator
) -> Tensor:
    if estimator == "sampled":
        return torch.multinomial(p, 1, generator=generator)[:, 0]
    if estimator == "argmax":
        return p.argmax(-1)
    if task.labels is None:
        raise UsageError(
            "the empirical Fisher needs labelled data; use estimator=exact"
        )
    return task.labels[part]
