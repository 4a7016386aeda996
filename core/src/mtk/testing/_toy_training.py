"""Making and keeping the models of toy tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

SPLITS = ("train", "validation", "test")
ITEMS = 24  # of every split of every cell


def start(kind: type[nn.Module], seed: int) -> nn.Module:
    """A model with weights that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def like(kind: type[nn.Module], other: nn.Module) -> nn.Module:
    """A model with another one's weights."""
    model = start(kind, 0)
    model.load_state_dict(other.state_dict())
    return model


def loaded(kind: type[nn.Module], path: Path) -> nn.Module:
    """A model with the weights of a file, to run."""
    model = start(kind, 0)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


def saved(models: Mapping[str, nn.Module], folder: Path) -> dict[str, Path]:
    """One file per model; name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.safetensors" for name in models}
    for name, model in models.items():
        save_file(model.state_dict(), paths[name])
    return paths


def fit(
    model: nn.Module,
    parameters: Iterable[Tensor],
    loss: Callable[[], Tensor],
    steps: int,
    rate: float = 0.05,
) -> None:
    """Adam steps."""
    optimizer = torch.optim.Adam(list(parameters), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(loss())
            optimizer.step()
    model.eval()
