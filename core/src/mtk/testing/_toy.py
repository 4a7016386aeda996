"""A whole track in a second: cells, data, models, an adapter and a metric to check with.

Items are points around one centre per class. A style turns the plane of two features by
some angle; a held-in cell is one style with one expert, a generalization cell a style
between. The base has seen every style faintly, so that merging has something to win.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.declare import Adapter, Method, Metric, Param, Task, Track
from mtk.loading import Plugin, Provided, Registry
from mtk.randomness import stream
from mtk.testing._models import default_count, make_case
from mtk.testing._network import Network

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from mtk.adapters import Checkpoint
    from mtk.tracks import Data, Models

_CLASSES, _FEATURES, _ITEMS = 4, 6, 48
# The first cells are held in, as many as a method takes experts.
_ANGLES = {"left": -1.2, "right": 1.2, "middle": 0.0, "up": -0.6, "down": 0.6}
MOST_EXPERTS = len(_ANGLES) - 1
_BASE_STEPS, _EXPERT_STEPS, _RATE = 8, 30, 0.02
_NOISE = 1.0  # so that no model is perfect and methods can differ


class ToyTrack:
    """The target of the toy track; all its cells have one head."""

    def __init__(self, *, cache: Path, seed: int, options: Mapping[str, Any]) -> None:
        self._folder, self._seed = cache, seed
        self._held_in = tuple(_ANGLES)[: options.get("experts", 3)]

    def prepare(self, report: Callable[[str, float], None]) -> Models:
        """Train everything, in a fraction of a second."""
        folder = self._folder / f"seed{self._seed}-{len(self._held_in)}"
        folder.mkdir(parents=True, exist_ok=True)
        start = make_case(_ANY, d_in=_FEATURES, classes=_CLASSES, extras=()).base
        base = _train(self.data, start, tuple(_ANGLES), _BASE_STEPS, seed=0)
        states = {"base": base}
        groups = {"multitask": self._held_in} | {
            cell: (cell,) for cell in self._held_in
        }
        for name, cells in groups.items():
            states[name] = _train(
                self.data, base, cells, _EXPERT_STEPS, seed=self._seed
            )
        paths = {name: folder / f"{name}.safetensors" for name in states}
        for name, state in states.items():
            save_file(state, paths[name])
            report(f"toy model {name}", 1.0)
        return {
            "base": paths["base"],
            "experts": [paths[cell] for cell in self._held_in],
            "multitask": paths["multitask"],
        }

    def data(self, task: str, split: str) -> Data:
        """Items of one cell; equal ids are the same point in several styles."""
        labels = torch.arange(_ITEMS) % _CLASSES
        generator = stream(0, "toy", split)
        x = _centres()[labels] + _NOISE * torch.randn(
            _ITEMS, _FEATURES, generator=generator
        )
        first = ("train", "validation", "test").index(split) * _ITEMS
        ids = list(range(first, first + _ITEMS))
        return {"inputs": _turned(x, _ANGLES[task]), "labels": labels, "ids": ids}

    def outputs(self, model: nn.Module, task: str, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """Scores of the classes, (n, classes)."""
        scores: Tensor = model(inputs)
        return scores

    def predict(self, model: nn.Module, task: str, inputs: Tensor) -> Sequence[object]:
        """The best class of every item."""
        best: list[int] = self.outputs(model, task, inputs).argmax(-1).tolist()
        return best


class ToyAdapter:
    """The target of the toy adapter: one safetensors file, run by :class:`Network`."""

    def matches(self, path: Path) -> bool:
        """Whether it is one file of tensors."""
        return path.suffix == ".safetensors"

    def open(
        self,
        path: Path,
        *,
        view: str = "tensors",  # noqa: ARG002
        base: Checkpoint | None = None,  # noqa: ARG002
    ) -> Checkpoint:
        """Open lazily."""
        return SafetensorsCheckpoint([path], path.stem)

    def build(self, path: Path) -> nn.Module:
        """A runnable network."""
        return Network(load_file(path)).eval().requires_grad_(False)

    def write(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        *,
        donor: Path | None,  # noqa: ARG002
        metadata: Any,
    ) -> None:
        """Write one file."""
        save_file(dict(tensors), path, metadata)


def _train(
    data: Callable[[str, str], Data],
    start: Mapping[str, Tensor],
    cells: Sequence[str],
    steps: int,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """A network after some steps on nine tenths of the cells' items; ``seed`` chooses."""
    parts: list[Any] = [data(cell, "train") for cell in cells]
    x = torch.cat([part["inputs"] for part in parts])
    y = torch.cat([part["labels"] for part in parts])
    keep = torch.rand(len(x), generator=stream(seed, "toy", *cells)) < 0.9
    model = Network(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x[keep]), y[keep]).backward()
            optimizer.step()
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def accuracy(
    *, predictions: Sequence[object], references: Sequence[object]
) -> list[float]:
    """One for every right prediction."""
    return [float(p == r) for p, r in zip(predictions, references, strict=True)]


def _centres() -> Tensor:
    return 1.5 * torch.randn(_CLASSES, _FEATURES, generator=stream(0, "toy centres"))


def _turned(x: Tensor, angle: float) -> Tensor:
    a, b = x[:, 0], x[:, 1]
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.cat(
        [torch.stack([cos * a - sin * b, sin * a + cos * b], 1), x[:, 2:]], 1
    )


_ANY = Method(name="any", target="mtk.testing._toy:accuracy", summary="Never merged")


def toy_track(experts: int = 3) -> Track:
    """The declaration, with this many held-in cells and experts."""
    return Track(
        name="toy",
        target="mtk.testing._toy:ToyTrack",
        summary="Points around four centres in five turned planes",
        setting="conformance checks",
        tasks=tuple(Task(name=n, held_in=i < experts) for i, n in enumerate(_ANGLES)),
        version="1",
        adapter="toy",
        options=(Param("experts", experts, "number of held-in cells", low=1),),
    )


PLUGIN = Plugin(
    distribution="checked",
    version="0",
    entry_point="checked",
    module="mtk.testing._toy",
    seconds=0.0,
    hooks=("mtk_methods", "mtk_tasks", "mtk_adapters", "mtk_metrics"),
    imported_torch=False,
)


def toy_registry(method: Method, plugin: Plugin | None = None) -> Registry:
    """Everything that a benchmark of one method on the toy track needs."""
    adapter = Adapter(name="toy", target=ToyAdapter(), summary="One safetensors file")
    metric = Metric(name="accuracy", target=accuracy, summary="Share of right answers")
    track = toy_track(min(default_count(method), MOST_EXPERTS))
    return Registry(
        plugins=[PLUGIN],
        methods=[Provided(method, plugin or PLUGIN)],
        tracks=[Provided(track, PLUGIN)],
        adapters=[Provided(adapter, PLUGIN)],
        metrics=[Provided(metric, PLUGIN)],
    )
