"""How a model lies in its folder, and which of the files beside its weights go along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.adapters import Layout
from mtk.errors import CheckpointError
from mtk.model_folders.carrying import OPEN_CLIP_CONFIG, PIPELINE, companions, left_out
from mtk.model_folders.reading import read_object
from mtk_adapters_full.classes import family_of
from mtk_adapters_full.weights import SUFFIX, components, parts

if TYPE_CHECKING:
    from pathlib import Path

    from mtk_adapters_full.weights import Weights

# What each library calls the weights of one component.
_STEMS = {
    "transformers": "model",
    "diffusers": "diffusion_pytorch_model",
    "open_clip": "open_clip_model",
}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def layout_of(path: Path) -> Layout:
    """The layout of a file or folder.

    Raises:
        CheckpointError: the folder cannot be written again so that it loads.
    """
    found = components(path)
    if path.is_file():
        return Layout(weights={"": path.name})
    pipeline = (path / PIPELINE).is_file()
    if pipeline:
        _check_pipeline(path, found)
    family = "diffusers" if pipeline else _family(path, found)
    weights = {name: _target(name, part) for name, part in found.items()}
    files = companions(path)
    for part in parts(path):
        files |= companions(path / part, f"{part}/")
    if family != "open_clip":  # there it is about the same weights for that library
        files.pop(OPEN_CLIP_CONFIG, None)
    return Layout(family=family, weights=weights, files=files)


def notes_of(path: Path) -> tuple[str, ...]:
    """What opening or writing a model like the one at ``path`` leaves out."""
    notes = [note for found in components(path).values() for note in found.notes]
    if path.is_file():
        return tuple(notes)
    for folder in (path, *(path / part for part in parts(path))):
        notes += left_out(folder)
    return tuple(notes)


def _family(path: Path, found: dict[str, Weights]) -> str:
    if "" in found:
        return family_of(path, found[""].stem)
    return family_of(next(iter(found.values())).folder, "")


def _target(component: str, weights: Weights) -> str:
    family = family_of(weights.folder, weights.stem)
    stem = _STEMS.get(family, weights.stem)
    start = f"{component}/" if component else ""
    return f"{start}{stem}{SUFFIX}"


def _check_pipeline(path: Path, found: dict[str, Weights]) -> None:
    """Refuse a pipeline that would not load once its weights are written anew."""
    table = read_object(path / PIPELINE)
    own = [
        value[0]
        for value in table.values()
        if isinstance(value, list)
        and value
        and isinstance(value[0], str)
        and any(path.glob(f"**/{value[0]}.py"))
    ]
    if isinstance(table.get("_class_name"), list) or own:
        raise CheckpointError(
            f"{path / PIPELINE} names code of its own, which is never run or carried\n"
            "Give the folders of its components instead, such as the unet's"
        )
    for part in parts(path):
        pickled = [f for pattern in _PICKLED for f in (path / part).glob(pattern)]
        if pickled and part not in found:
            raise CheckpointError(
                f"{path}: the component {part} has pickled weights only "
                f"({pickled[0].name}), which are not read\n"
                "Save the pipeline with safe_serialization first"
            )
