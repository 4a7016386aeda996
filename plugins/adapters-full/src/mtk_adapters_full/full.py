"""Opening, describing and building full checkpoints: the target of the adapter.

A path is a safetensors file, a model folder of transformers, diffusers, open_clip or
sentence-transformers, a pipeline folder of diffusers, or any folder with one model in it.
Nothing but safetensors is read, and nothing that a config names is opened or run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.errors import CheckpointError, first_line
from mtk.files import belongs
from mtk.model_folders.carrying import PIPELINE
from mtk_adapters_full.sources import FullCheckpoint
from mtk_adapters_full.weights import components, parts, regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from mtk.adapters import Changes, Checkpoint, Layout
    from mtk.vocabulary import Vocabulary


def matches(path: Path) -> bool:
    """Whether there is something here that :func:`open` reads."""
    if path.is_file():
        return path.suffix == ".safetensors"
    if not path.is_dir():
        return False
    if (path / PIPELINE).is_file():
        return belongs(path, path / PIPELINE)
    return bool(regular(path)) or any(regular(path / part) for part in parts(path))


def open(  # noqa: A001  the adapter contract names it so
    path: Path,
    *,
    view: str = "tensors",  # noqa: ARG001  other kinds of checkpoint have several
    base: Checkpoint | None = None,  # noqa: ARG001  and some store differences
) -> FullCheckpoint:
    """Open a file or folder lazily. Tensors of a pipeline are ``component/name``."""
    found = components(path)

    def roles() -> Mapping[str, tuple[str, str]]:
        from mtk_adapters_full.roles import roles_of

        if path.is_file():  # its neighbours may belong to another model
            return {}
        return roles_of(found, {name: opened.info(name) for name in opened.names()})

    opened = FullCheckpoint(path, found, roles)
    return opened


def roles(path: Path) -> dict[str, str]:
    """Tensor -> role, as the model's class says; empty where no class can be had."""
    from mtk_adapters_full.roles import roles_of

    if path.is_file():
        return {}
    opened = open(path)
    infos = {name: opened.info(name) for name in opened.names()}
    return {name: role for name, (role, _) in roles_of(components(path), infos).items()}


def layout(path: Path) -> Layout:
    """How the model is stored, and the small files beside its weights."""
    from mtk_adapters_full.layouts import layout_of

    return layout_of(path)


def notes(path: Path) -> tuple[str, ...]:
    """What opening this model, or writing one like it, leaves out, for the user to know."""
    from mtk_adapters_full.layouts import notes_of

    return notes_of(path)


def adapt(layout: Layout, changes: Changes) -> Layout:
    """The layout with a config and tokenizer files that fit the merged model."""
    from mtk.model_folders.adapting import adapted

    return adapted(layout, changes)


def vocabulary(path: Path) -> Vocabulary | None:
    """Tokens, rows and the tensors with one row per token; None without a tokenizer."""
    from mtk.model_folders.tokens import vocabulary_of

    return None if path.is_file() else vocabulary_of(path, lambda: open(path))


def build(path: Path) -> nn.Module:
    """A runnable model in evaluation mode, without gradients, with visible linear layers.

    Its weights are float32. Parameters have the names of the file, where the library's
    current class has them too.
    """
    from mtk.live import expose_linears
    from mtk_adapters_full.classes import family_of, refuse_pipeline, run_model

    if path.is_file():
        raise CheckpointError(
            f"{path} is one file, which says nothing about its architecture\n"
            "Give the folder with its config"
        )
    refuse_pipeline(path)
    found = components(path)
    family = family_of(path, found[""].stem) if "" in found else "plain"
    if family == "plain":
        raise CheckpointError(
            f"{path} says nothing about its architecture, so it cannot be run\n"
            "Folders with a config of transformers, diffusers or open_clip can"
        )
    try:
        model = run_model(path, family, FullCheckpoint(path, {"": found[""]}, dict))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} could not be built with {family}: {first_line(error)}"
        ) from error
    return expose_linears(model).eval().requires_grad_(False)
