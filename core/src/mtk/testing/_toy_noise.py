"""A toy track of predicted noise: a model tells the noise in a point near a centre.

Each expert is a LoRA adapter that knows one centre.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mtk.checkpoint import StateDict
from mtk.randomness import stream
from mtk.testing._toy_training import ITEMS, SPLITS, fit, like, loaded, saved, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mtk.adapters import Checkpoint
    from mtk.tracks import Data, Models

    Inputs = Mapping[str, Tensor]

_WIDTH, _POINT = 12, 4
CENTRES = ("north", "south", "middle")


class Noise(nn.Module):
    """The noise in a point, (n, 4), from the point and the number of its cell."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(_POINT + len(CENTRES), _WIDTH)
        self.out = nn.Linear(_WIDTH, _POINT)

    def forward(self, point: Tensor, cell: Tensor) -> Tensor:
        """Point (n, 4) and cell (n,)."""
        code = F.one_hot(cell, len(CENTRES)).to(point)
        told: Tensor = self.out(torch.tanh(self.hidden(torch.cat([point, code], -1))))
        return told


class ToyNoise:
    """The target of ``toy-noise``; its experts are LoRA adapters of the hidden layer."""

    def __init__(self, *, cache: Path, seed: int, options: Mapping[str, Any]) -> None:  # noqa: ARG002
        self._folder, self._seed = cache, seed

    def prepare(self, report: Callable[[str, float], None]) -> Models:
        """Train everything, in a fraction of a second."""
        base = start(Noise, 0)
        fit(base, base.parameters(), lambda: self._loss(base, CENTRES), 30)
        folder = self._folder / f"seed{self._seed}"
        paths = saved({"base": base}, folder)
        for name in ("north", "south", "multitask"):
            cells = CENTRES[:2] if name == "multitask" else (name,)
            paths[name] = folder / f"{name}.lora.safetensors"
            save_file(self._adapter(base, cells), paths[name])
            report(f"toy adapter {name}", 1.0)
        experts = [paths["north"], paths["south"]]
        return {
            "base": paths["base"],
            "experts": experts,
            "multitask": paths["multitask"],
        }

    def _adapter(self, base: nn.Module, cells: Sequence[str]) -> dict[str, Tensor]:
        """Factors of rank two, trained on some cells."""
        model = like(Noise, base).requires_grad_(False)
        generator = stream(self._seed, "toy adapter", *cells)
        weight = model.get_parameter("hidden.weight").clone()
        a = torch.randn(2, weight.shape[1], generator=generator).requires_grad_()
        b = torch.zeros(weight.shape[0], 2, requires_grad=True)

        def loss() -> Tensor:
            merged = {"hidden.weight": weight + b @ a}
            return self._loss(
                lambda *x: torch.func.functional_call(model, merged, x), cells
            )

        fit(model, [a, b], loss, 40)
        return {"hidden.A": a.detach(), "hidden.B": b.detach()}

    def _loss(self, model: Any, cells: Iterable[str]) -> Tensor:
        parts: list[Any] = [self.data(cell, "train")["inputs"] for cell in cells]
        return torch.stack(
            [(model(x["point"], x["cell"]) - x["noise"]).square().mean() for x in parts]
        ).sum()

    def build(self, path: Path) -> nn.Module:
        """The model with these weights."""
        return loaded(Noise, path)

    def data(self, task: str, split: str) -> Data:
        """Points around the cell's centre, and the noise in them."""
        number = CENTRES.index(task)
        centre = 2 * torch.randn(_POINT, generator=stream(0, "toy centre", task))
        generator = stream(0, "toy noise", split)  # the same noise in every cell
        noise = torch.randn(ITEMS, _POINT, generator=generator)
        first = SPLITS.index(split) * ITEMS
        return {
            "inputs": {
                "point": centre + noise,
                "cell": torch.full((ITEMS,), number),
                "noise": noise,
            },
            "labels": noise,
            "ids": list(range(first, first + ITEMS)),
        }

    def outputs(self, model: nn.Module, task: str, inputs: Any) -> Tensor:  # noqa: ARG002
        """The noise that the model tells, (n, 4)."""
        told: Tensor = model(inputs["point"], inputs["cell"])
        return told

    def targets(self, task: str, inputs: Inputs) -> Tensor:  # noqa: ARG002
        """The noise that there is."""
        return inputs["noise"]

    def predict(self, model: nn.Module, task: str, inputs: Any) -> Sequence[object]:
        """The noise that the model tells, as numbers."""
        told: list[list[float]] = self.outputs(model, task, inputs).tolist()
        return told

    def sheet(self, model: nn.Module) -> bytes:
        """The told noise of some items, as shades of grey."""
        inputs = self.data("north", "test")["inputs"]
        shades = (128 + 40 * self.outputs(model, "north", inputs)[:8]).clamp(0, 255)
        return _png([bytes(row) for row in shades.int().tolist()])


class ToyProducts:
    """The target of an adapter of kind ``lora``: ``hidden.weight`` plus B A."""

    def matches(self, path: Path) -> bool:
        """Whether it is a toy adapter."""
        return path.name.endswith(".lora.safetensors")

    def open(
        self,
        path: Path,
        *,
        view: str = "products",  # noqa: ARG002
        base: Checkpoint | None = None,
    ) -> Checkpoint:
        """The base with the product added."""
        assert base is not None
        state = {name: base.read(name) for name in base.names()}
        factors = load_file(path)
        state["hidden.weight"] = (
            state["hidden.weight"] + factors["hidden.B"] @ factors["hidden.A"]
        )
        return StateDict(state, path.stem)


def _png(rows: Sequence[bytes]) -> bytes:
    """A picture in shades of grey."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def closeness(*, predictions: Sequence[Any], references: Sequence[Any]) -> list[float]:
    """One where the noise is told exactly, towards zero where it is not."""
    told, true = torch.tensor(predictions), torch.tensor(references)
    scores: list[float] = (-(told - true).square().mean(-1)).exp().tolist()
    return scores
