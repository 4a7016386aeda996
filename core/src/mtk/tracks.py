"""The contract between a track and the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from mtk.batches import Batch
    from mtk.roots import Part


class Models(TypedDict):
    """Where a track's checkpoints are. Experts are in the order of the held-in tasks."""

    base: Path
    experts: Sequence[Path]
    multitask: Path


class Data(TypedDict):
    """One split of one task.

    ``inputs`` is a tensor, or a dict of tensors, whose first dimension counts the n items;
    ``labels`` are the n references that the metrics take. ``ids`` name the underlying
    items: items that appear in several tasks (one picture in several styles) have equal
    ids, and intervals treat them as one draw.
    """

    inputs: Batch
    labels: Tensor | Sequence[Any]
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

    def outputs(self, model: nn.Module, task: str, inputs: Batch) -> Tensor:
        """What the track's ``output`` says, (n, *positions, C); differentiable.

        Scores of classes (n, C); of tokens at every target position (n, T, C), the targets
        being part of the inputs; a predicted noise (n, C) at times and noises that are.
        A track whose ``output`` is ``none`` has no such function.
        """

    def predict(self, model: nn.Module, task: str, inputs: Batch) -> Sequence[object]:
        """Predictions in the form its metrics take.

        Deterministic; noise is drawn per task and item, the same for all models.
        """

    # What follows is optional.

    def mask(self, task: str, inputs: Batch) -> Tensor:
        """Positions of the outputs that count, bool, (n, *positions). All, without it."""

    def targets(self, task: str, inputs: Batch) -> Tensor:
        """True outputs: (n, *positions) numbers of classes, or (n, *positions, C) means.

        Given to what declares labelled data. Without it, labels that are a tensor of
        n numbers are the classes of outputs (n, C).
        """

    def gram_mask(self, module_name: str, task: str, inputs: Batch) -> Tensor | None:
        """Rows of a linear layer's input that are no padding, bool, (n, T); None is all.

        In an encoder-decoder the rows of the encoder, and of keys and values of
        cross-attention, are source tokens; all others are target tokens.
        """

    def build(self, path: Path) -> nn.Module:
        """A runnable model with the parameters' names of the checkpoint at ``path``.

        Without it, the adapter builds it. Linear layers must be visible to hooks.
        """

    def sheet(self, model: nn.Module) -> bytes:
        """A picture (PNG) of what a model makes: the first examples, not chosen."""

    def missing(self) -> Sequence[str]:
        """What this machine lacks to run the track, one phrase each."""

    def notes(self) -> Sequence[str]:
        """What stands under its table, one sentence each.

        Such as what its judges reach on real data, or what a constant answer would score.
        Asked once, when the models are there.
        """

    # What follows is for tracks whose data and weights are the user's to bring, in a
    # folder called the root; ``mtk tracks prepare`` calls it, and :mod:`mtk.roots` helps.

    def parts(self, root: Path) -> Sequence[Part]:
        """What must be there, in the order in which it is to be got.

        Missing things are no errors; weights are not read.
        """

    def fetch(
        self, root: Path, name: str, report: Callable[[str, float], None]
    ) -> None:
        """Download one part of kind ``weights`` or ``data``; only when asked to."""

    def make(
        self,
        root: Path,
        name: str,
        report: Callable[[str, float], None],
        *,
        device: str = "cpu",
    ) -> None:
        """Make one part that is ready. A killed run goes on; the result appears whole."""

    def adopt(self, root: Path, name: str, source: Path) -> None:
        """Import one expert from a file or folder, checked and copied."""
