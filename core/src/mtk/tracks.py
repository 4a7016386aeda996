"""The contract between a track and the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn


class Models(TypedDict):
    """Where a track's checkpoints are. Experts are in the order of the held-in tasks."""

    base: Path
    experts: Sequence[Path]
    multitask: Path


class Data(TypedDict):
    """One split of one task.

    ``ids`` name the underlying items: items that appear in several tasks (one picture in
    several styles) have equal ids, and intervals treat them as one draw.
    """

    inputs: Tensor
    labels: Tensor
    ids: Sequence[int]


class LiveTrack(Protocol):
    """What a track's target returns when it is called.

    The target is called as ``target(cache=Path, seed=int, options=Mapping)``. ``cache`` is
    a folder of the track's own; ``seed`` decides how experts are trained, never the base.
    """

    def prepare(self, report: Callable[[str, float], None]) -> Models:
        """Make the checkpoints, or find them in the cache. Deterministic, resumable."""

    def data(self, task: str, split: str) -> Data:
        """One of ``train``, ``validation``, ``test``; disjoint items."""

    def logits(self, model: nn.Module, task: str, inputs: Tensor) -> Tensor:
        """Scores of the classes of that task, (n, classes); differentiable."""

    def predict(self, model: nn.Module, task: str, inputs: Tensor) -> Sequence[object]:
        """Predictions in the form its metrics take."""
