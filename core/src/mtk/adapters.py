"""The contract between an adapter and everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from mtk.declare import TensorInfo
    from mtk.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a view, as a part of a stored one: from entry ``start`` on, flat."""

    stored: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a family of models lies in a folder; a merged model is written like it.

    Args:
        family: ``transformers``, ``diffusers``, ``open_clip``, ``peft`` ... or ``plain``.
        weights: component -> file of its weights, relative to the folder. A tensor called
            ``unet/conv_in.weight`` belongs to the component ``unet``; one without a slash
            to the component ``""``.
        files: relative path -> file to carry over, or its content: configs, tokenizer.
        pieces: tensors of the view that are parts of a stored tensor.
        stored: the stored tensors that ``pieces`` speaks of, under names of the view
            (component and slash included).
    """

    family: str = "plain"
    weights: Mapping[str, str] = field(
        default_factory=lambda: {"": "model.safetensors"}
    )
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    pieces: Mapping[str, Piece] = field(default_factory=dict)
    stored: Mapping[str, TensorInfo] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """In what a merged model differs from the one whose layout it takes.

    Args:
        dtype: of its floating-point weights, where it is another one (``bfloat16`` ...).
        rows: of its embeddings, where the vocabulary grew or shrank.
        layers: how many it has, where layers were stacked.
        tokenizer: the layout that gives tokenizer files instead.
        added_tokens: tokens to append to the tokenizer -> their ids.
        tied: whether output and input embeddings are one tensor, where that changed.
    """

    dtype: str | None = None
    rows: int | None = None
    layers: int | None = None
    tokenizer: Layout | None = None
    added_tokens: Mapping[str, int] = field(default_factory=dict)
    tied: bool | None = None


@runtime_checkable
class Checkpoint(Protocol):
    """A model opened lazily: names first, one tensor at a time on request.

    A LoRA adapter seen through its *products* is a checkpoint too (base plus ``s B A``,
    computed when it is read), and so is an MoE seen expert by expert.
    """

    label: str
    kind: str

    def names(self) -> Sequence[str]:
        """Tensor names, sorted."""

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role, from headers only."""

    def read(self, name: str) -> Tensor:
        """The tensor, memory-mapped where possible. Callers must not change it."""


class AdapterTarget(Protocol):
    """What the target of an :class:`mtk.Adapter` provides."""

    def matches(self, path: Path) -> bool:
        """Whether this adapter opens what is at ``path``. Reads no weights."""

    def open(
        self, path: Path, *, view: str = "tensors", base: Checkpoint | None = None
    ) -> Checkpoint:
        """Open lazily. Adapters that store differences need the ``base``."""

    def build(self, path: Path) -> nn.Module:
        """A runnable model without gradients, in evaluation mode.

        Its parameters have the names of the checkpoint, and every linear layer is a
        module that hooks can see (:func:`mtk.live.expose_linears`).
        """

    def layout(self, path: Path) -> Layout:
        """How the model at ``path`` is stored, and the files it has beside its weights.

        Optional; without it, results are written as one plain file.
        """

    def adapt(self, layout: Layout, changes: Changes) -> Layout:
        """The layout with configs and tokenizer files that fit the merged model.

        Optional; without it, such changes are refused.
        """

    def vocabulary(self, path: Path) -> Vocabulary | None:
        """Tokens and rows of the model at ``path``; None without a tokenizer.

        Optional; without it, vocabularies are compared by the shapes of tensors only.
        """

    def notes(self, path: Path) -> tuple[str, ...]:
        """What of ``path`` is left out of a result, for the user to know. Optional."""
