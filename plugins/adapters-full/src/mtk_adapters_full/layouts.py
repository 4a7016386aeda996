"""How a model lies in its folder, and which of the files beside its weights go along."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mtk.adapters import Layout
from mtk.errors import CheckpointError
from mtk_adapters_full.classes import family_of
from mtk_adapters_full.reading import clean, companion, read_json
from mtk_adapters_full.weights import (
    MODULES,
    OPEN_CLIP_CONFIG,
    PIPELINE,
    SUFFIX,
    components,
    parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mtk_adapters_full.weights import Weights

CHAT_TEMPLATES = "additional_chat_templates"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tekken.json",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    f"{CHAT_TEMPLATES}/*.jinja",
)
_COMPANIONS = (
    *TOKENIZER_FILES,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "scheduler_config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    MODULES,
    PIPELINE,
    OPEN_CLIP_CONFIG,
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
# Never carried, whatever they are called otherwise.
_NEVER = (".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".ckpt", ".pkl", SUFFIX)
# What each library calls the weights of one component.
_STEMS = {
    "transformers": "model",
    "diffusers": "diffusion_pytorch_model",
    "open_clip": "open_clip_model",
}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a layout belongs to the tokenizer."""
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)


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
    files = dict(_companions(path, ""))
    for part in parts(path):
        files |= _companions(path / part, f"{part}/")
    if family != "open_clip":
        files.pop(
            OPEN_CLIP_CONFIG, None
        )  # of the same model's weights for that library
    return Layout(family=family, weights=weights, files=files)


def notes_of(path: Path) -> tuple[str, ...]:
    """What opening or writing a model like the one at ``path`` leaves out."""
    notes = [note for found in components(path).values() for note in found.notes]
    if path.is_file():
        return tuple(notes)
    for folder in (path, *(path / part for part in parts(path))):
        code = sorted(file.name for file in folder.glob("*.py"))
        if code:
            notes.append(f"{folder / code[0]}: code of a checkpoint is never carried")
        for file in sorted(folder.glob("*.json")):
            if _is_config(file.name) and companion(folder, file):
                value = read_json(file)
                if clean(value) != value:
                    notes.append(f"{file}: the keys that name code were left out")
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


def _companions(folder: Path, start: str) -> Iterator[tuple[str, Path | bytes]]:
    inner = folder / CHAT_TEMPLATES
    nested = (
        sorted(inner.glob("*.jinja"))
        if inner.is_dir() and not inner.is_symlink()
        else ()
    )
    for file in (*sorted(folder.iterdir()), *nested):
        name = file.relative_to(folder).as_posix()
        if (
            name.lower().endswith(_NEVER)
            or not any(fnmatchcase(name, pattern) for pattern in _COMPANIONS)
            or not companion(folder, file)
        ):
            continue
        yield start + name, _carried(file)


def _is_config(name: str) -> bool:
    return name.endswith("config.json") or name == PIPELINE


def _carried(file: Path) -> Path | bytes:
    """The file, or its content without what would make a loader run code."""
    if not _is_config(file.name):
        return file
    value = read_json(file)
    kept = clean(value)
    return file if kept == value else dump(kept)


def dump(value: object) -> bytes:
    """JSON as libraries write it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _check_pipeline(path: Path, found: dict[str, Weights]) -> None:
    """Refuse a pipeline that would not load once its weights are written anew."""
    table = read_json(path / PIPELINE)
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
