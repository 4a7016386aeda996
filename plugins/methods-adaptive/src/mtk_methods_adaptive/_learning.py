"""Merging with given coefficients, and Adam steps on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from mtk import LiveTask

    # A task, and its batches: tensors, or dicts of tensors.
    Stream = tuple[LiveTask, Iterator[Any]]
    State = Mapping[str, Tensor]

BETAS = (0.9, 0.999)  # of Adam, as in the paper
ALL = "all"  # name of the one row of granularity task


def combine(
    base: State, deltas: State, coefficients: Mapping[str, Tensor], *, clamp: bool
) -> dict[str, Tensor]:
    """The base plus the task vectors times their (clamped) coefficients."""
    merged = {}
    for name, rows in deltas.items():
        row = coefficients[ALL if ALL in coefficients else name]
        used = (row.clamp(0.0, 1.0) if clamp else row).to(rows)
        merged[name] = base[name] + (used @ rows).view(base[name].shape)
    return merged


def learn(
    base: State,
    deltas: State,
    coefficients: dict[str, Tensor],
    *,
    clamp: bool,
    learning_rate: float,
    steps: int,
    streams: Sequence[Stream],
    batches_per_step: int,
) -> dict[str, Tensor]:
    """Adam steps on the raw coefficients; returns new ones."""
    rows = {name: row.clone() for name, row in coefficients.items()}
    optimizer = torch.optim.Adam(rows.values(), lr=learning_rate, betas=BETAS)
    for _ in range(steps):
        weights = combine(base, deltas, rows, clamp=clamp)
        gradients = _weight_gradients(weights, streams, batches_per_step)
        for row in rows.values():
            row.grad = torch.zeros_like(row)
        for name, gradient in gradients.items():
            row = rows[ALL if ALL in rows else name]
            inside = (row >= 0) & (row <= 1) if clamp else torch.ones_like(row).bool()
            slope = (deltas[name] @ gradient.flatten()).to(row)  # (k,)
            row.grad += torch.where(inside, slope, 0.0)  # type: ignore[operator]
        optimizer.step()
    return rows


def _weight_gradients(
    weights: State,
    streams: Sequence[Stream],
    batches_per_step: int,
) -> dict[str, Tensor]:
    """Gradient of the summed entropies with respect to each merged tensor."""
    leaves = {
        name: tensor.detach().requires_grad_() for name, tensor in weights.items()
    }
    total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for task, batches in streams:
        for _ in range(batches_per_step):
            inputs = next(batches)
            loss = entropy(task.logits(leaves, inputs), task.counted(inputs))
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    total[name] += gradient
    return total


def entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean entropy of the predictions that count, from logits (..., classes).

    A prediction is one item, or one position of a sequence; those that a mask (...)
    leaves out (padding) do not count.
    """
    logs = logits.float().log_softmax(-1)
    each = -(logs.exp() * logs).sum(-1)
    return each.mean() if mask is None else each[mask.bool()].mean()
