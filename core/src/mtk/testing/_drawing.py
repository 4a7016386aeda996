"""Drawing the numbers of small models, statistics and data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk.checkpoint import describe
from mtk.randomness import stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    State = dict[str, Tensor]

TASK_VECTOR = 0.1  # about a fifth of the base's entries, as after real fine-tuning


# Rows under a Gram matrix: more than features, so that it is regular.
_ROWS = 20


def shapes_of(d_in: int, width: int, classes: int, extras: Sequence[str]) -> State:
    """Empty tensors of the right names, shapes and types."""
    shapes: dict[str, tuple[int, ...]] = {
        "hidden.weight": (width, d_in),
        "hidden.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    extra: dict[str, dict[str, tuple[int, ...]]] = {
        "embedding": {"embed.weight": (5, d_in)},
        "convolution": {"conv.weight": (4, 3, 2, 2)},
        "scalar": {"scale": ()},
        "empty": {"void.weight": (0, d_in), "void.bias": (0,)},
        "tied": {"tied.weight": (width, d_in)},
    }
    for name in extras:
        shapes |= extra.get(name, {})
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    if "counter" in extras:
        state["norm.counter"] = torch.empty((), dtype=torch.int64)
    return state


def draw_model(like: State, seed: int, label: str) -> State:
    """Weights of the usual size; norms around one; 100 in whole numbers."""
    state = {}
    for name, tensor in like.items():
        if not tensor.is_floating_point():
            state[name] = torch.full_like(tensor, 100)
            continue
        value = 0.5 * draw(tensor.shape, seed, label, name)
        norm = describe(name, tensor.shape, torch.float32).role == "norm"
        state[name] = (value + 1 if norm else value).to(tensor.dtype)
    return state


def add_task_vector(base: State, vector: State) -> State:
    """An expert: the base plus a little of another model."""
    return {
        name: tensor + TASK_VECTOR * vector[name]
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


def draw_statistic(name: str, base: State, count: int, seed: int) -> list[State]:
    """One statistic of every expert, for the tensors that it reaches."""
    files: list[State] = []
    for i in range(count):
        file = {}
        for key, tensor in base.items():
            info = describe(key, tensor.shape, tensor.dtype)
            if name == "gram" and info.role == "linear":
                x = draw((_ROWS, tensor.shape[1]), seed, name, i, key)  # (T, d_in)
                file[key] = x.T @ x / _ROWS
            elif name == "fisher" and info.role != "buffer":
                file[key] = draw(tensor.shape, seed, name, i, key).square()
        files.append(file)
    return files


def draw_inputs(count: int, shape: tuple[int, int], seed: int) -> list[Tensor]:
    """Inputs of every task, (n, d_in)."""
    return [draw(shape, seed, "inputs", i) for i in range(count)]


def draw(shape: Sequence[int], seed: object, *names: object) -> Tensor:
    """Normal numbers that depend on nothing but the arguments."""
    return torch.randn(tuple(shape), generator=stream(0, "testing", seed, *names))


def copied(model: State) -> State:
    """A state dict of its own memory."""
    return {name: tensor.clone() for name, tensor in model.items()}


def scattered(tensor: Tensor) -> Tensor:
    """The same values in transposed or strided memory."""
    if tensor.ndim < 2:
        return torch.stack([tensor, tensor], -1)[..., 0]
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)
