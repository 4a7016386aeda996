"""The adapter: opening, describing and running mixtures of experts of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.adapters import Layout, Piece
from mtk.errors import CheckpointError, UsageError
from mtk.files import belongs
from mtk.model_folders.carrying import companions, left_out
from mtk.model_folders.reading import CONFIG
from mtk.model_folders.tokens import vocabulary_of
from mtk_adapters_moe import folder, names
from mtk_adapters_moe.adapting import adapt
from mtk_adapters_moe.structures import open_view

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from mtk.adapters import Checkpoint
    from mtk.checkpoint import SafetensorsCheckpoint
    from mtk.vocabulary import Vocabulary
    from mtk_adapters_moe.view import ExpertView

__all__ = ["adapt", "build", "layout", "matches", "notes", "open", "vocabulary"]


def matches(path: Path) -> bool:
    """Whether the folder's configuration counts experts and its tensors name them."""
    if not path.is_dir() or not belongs(path, path / CONFIG):
        return False
    try:
        config = folder.read_config(path)
        return names.expert_count(config) is not None and names.known(
            folder.tensor_names(path)
        )
    except CheckpointError:
        return False  # the adapter of plain checkpoints says what is wrong


def open(  # noqa: A001  the adapter contract names it so
    path: Path,
    *,
    view: str = "experts",
    base: Checkpoint | None = None,  # noqa: ARG001  for adapters that store differences
) -> ExpertView | SafetensorsCheckpoint:
    """Open a model expert by expert, or with its tensors as they are stored."""
    if view == "experts":
        return open_view(path)
    if view != "tensors":
        raise UsageError(
            f"the adapter moe has no view {view!r}; write experts or tensors"
        )
    source = folder.open_weights(path)
    source.kind = "moe"
    return source


def layout(path: Path) -> Layout:
    """How the tensors of the view ``experts`` lie in the file, and what is beside it."""
    opened = open_view(path)
    moved = {
        name: entry for name, entry in opened.entries.items() if name != entry.stored
    }
    return Layout(
        family="transformers",
        weights={"": folder.WEIGHTS},
        files=companions(path),
        pieces={name: Piece(e.stored, e.start) for name, e in moved.items()},
        stored={e.stored: opened.source.info(e.stored) for e in moved.values()},
    )


def vocabulary(path: Path) -> Vocabulary | None:
    """Tokens, rows and the tensors with one row per token; None without a tokenizer."""
    return vocabulary_of(path, lambda: folder.open_weights(path))


def notes(path: Path) -> tuple[str, ...]:
    """What writing a model like this one leaves out, for the user to know."""
    return tuple(left_out(path))


def build(path: Path) -> nn.Module:
    """The model as transformers runs it, with every expert as a module of its own.

    In evaluation mode, without gradients. Its parameters have the names of the view
    ``experts``, but for models whose experts are stored transposed or have biases
    (Llama 4, gpt-oss) and for those that call block or router otherwise (Granite, Phi):
    there they keep what transformers calls them. Routers are modules of transformers, and
    no hook can see them as linear layers.
    """
    from mtk.live import expose_linears
    from mtk_adapters_moe.linears import separate_experts
    from mtk_adapters_moe.running import load_model

    return expose_linears(separate_experts(load_model(path)))
