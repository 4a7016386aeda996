"""Statistics of one expert on its own task: diagonal Fisher and Gram matrices.

Both run the expert through :class:`mtk.live.LiveTask`, whatever its architecture, and are
accumulated in float64. A tensor that a statistic does not reach is absent from the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk import batches
from mtk.errors import CheckpointError, UsageError
from mtk.fisher import ESTIMATORS, fisher
from mtk.live import linear_layers
from mtk.randomness import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from mtk.batches import Batch
    from mtk.live import LiveTask

__all__ = ["ESTIMATORS", "collect", "fisher", "gram"]

_BATCH = 256


def collect(
    name: str,
    task: LiveTask,
    tensors: Mapping[str, Tensor],
    *,
    seed: int = 0,
    examples: int = 1000,
    tell: Callable[[str], None] | None = None,
    **params: Any,
) -> dict[str, Tensor]:
    """Compute a statistic.

    Args:
        name: ``fisher`` or ``gram``.
        task: the expert's task; its data are drawn without replacement.
        tensors: the expert's weights. Fisher is taken of the floating-point ones.
        seed: of the order of the examples, and of sampled targets.
        examples: most inputs used.
        tell: is told what was done otherwise than asked.
        params: ``estimator`` for ``fisher``.

    Returns:
        tensor name -> statistic, float32, as ``PARAMETERS.md`` lays the files out.
    """
    order = torch.randperm(len(task), generator=stream(seed, "examples", task.name))
    chosen = order[:examples]
    if not len(chosen):
        raise UsageError(
            f"task {task.name!r} has no examples for the statistic {name!r}"
        )
    weights = {
        name: tensor.detach().float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    if name == "gram":
        return gram(task, weights, chosen)
    if name == "fisher":
        return fisher(task, weights, chosen, seed=seed, tell=tell, **params)
    raise UsageError(f"no statistic named {name!r}")


def gram(
    task: LiveTask, tensors: Mapping[str, Tensor], chosen: Tensor
) -> dict[str, Tensor]:
    """X^T X / T of the input rows X (T, d_in) of every linear layer (arXiv 2212.09849).

    Only rows that count are taken, and T is their number: each layer of an
    encoder-decoder is divided by its own tokens, source or target.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    current: list[Batch] = []
    paths = {id(module): path for path, module in task.module.named_modules()}

    def watch(name: str, layer: nn.Module) -> Callable[..., None]:
        def add(
            _: object, given: tuple[Tensor, ...], named: Mapping[str, Tensor]
        ) -> None:
            x = given[0] if given else next(iter(named.values()))
            x = _counted(task, paths[id(layer)], x.detach(), current[0])
            x = x.double()
            sums[name] = sums.get(name, torch.zeros(())) + x.T @ x
            rows[name] = rows.get(name, 0) + len(x)

        return add

    handles = [
        layer.register_forward_pre_hook(watch(name, layer), with_kwargs=True)
        for name, layer in linear_layers(task.module).items()
        if name in tensors
    ]
    try:
        with torch.no_grad():
            for part in chosen.split(_BATCH):
                current[:] = [batches.take(task.inputs, part)]
                task.outputs(tensors, current[0])
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: (total / rows[name]).float() for name, total in sums.items() if rows[name]
    }


def _counted(task: LiveTask, path: str, x: Tensor, inputs: Batch) -> Tensor:
    """Rows of a layer's input that are no padding, (T, d_in)."""
    flat = x.reshape(-1, x.shape[-1])
    mask = None if task.gram_mask is None else task.gram_mask(path, inputs)
    if mask is None:
        return flat
    if mask.numel() != len(flat):
        raise CheckpointError(
            f"task {task.name!r}: gram_mask has {mask.numel()} entries for {path!r}, "
            f"which was given {len(flat)} rows"
        )
    return flat[mask.flatten().bool()]
