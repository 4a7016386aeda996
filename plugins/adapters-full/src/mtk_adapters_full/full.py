"""Opening and building plain checkpoints.

A path is a safetensors file, or a folder with one of: an index of shards, one file of a
usual name, or exactly one safetensors file. Nothing but safetensors is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from mtk.adapters import Checkpoint

_INDEXES = (
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
)
_SINGLE = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "diffusion_pytorch_model.safetensors",
)
OPEN_CLIP_CONFIG = "open_clip_config.json"


def matches(path: Path) -> bool:
    """Whether there is something here that :func:`open` reads."""
    if path.is_file():
        return path.suffix == ".safetensors"
    return path.is_dir() and bool(_regular(path))


def _regular(folder: Path) -> list[Path]:
    """Its safetensors files; a pipe or a dangling link is none."""
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def open(  # noqa: A001  the adapter contract names it so
    path: Path,
    *,
    view: str = "tensors",  # noqa: ARG001  other kinds of checkpoint have several
    base: Checkpoint | None = None,  # noqa: ARG001  and some store differences
) -> SafetensorsCheckpoint:
    """Open a file or folder lazily."""
    return SafetensorsCheckpoint(_files(path), str(path))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in _INDEXES:
        if (path / name).is_file():
            return _shards(path, path / name)
    for name in _SINGLE:
        if (path / name).is_file():
            return [path / name]
    files = _regular(path)
    if len(files) != 1:
        raise CheckpointError(
            f"{path} holds {len(files)} safetensors files and no index; name one of them"
        )
    return files


def _shards(folder: Path, index: Path) -> list[Path]:
    """The shards an index names, all of them inside its folder."""
    try:
        table: Any = json.loads(index.read_text())["weight_map"]
        names = sorted(set(table.values()))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{index}: not an index of shards: {error}") from error
    files = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(
                f"{index} names {name!r}, which is not a file beside it"
            )
        if not (folder / name).is_file():
            raise CheckpointError(f"{index} names {name!r}, which does not exist")
        files.append(folder / name)
    checkpoint = SafetensorsCheckpoint(files, str(folder))
    if set(checkpoint.names()) != set(table):
        odd = min(set(checkpoint.names()) ^ set(table))
        raise CheckpointError(f"{index} and its shards disagree about {odd!r}")
    return files


def build(path: Path) -> nn.Module:
    """A runnable model in evaluation mode, without gradients, with visible linear layers."""
    if not (path / OPEN_CLIP_CONFIG).is_file():
        raise CheckpointError(
            f"{path} says nothing about its architecture, so it cannot be run; an open_clip "
            f"folder has {OPEN_CLIP_CONFIG}"
        )
    import open_clip

    from mtk.live import expose_linears

    model: nn.Module = open_clip.create_model(f"local-dir:{path}")
    return expose_linears(model).eval().requires_grad_(False)
