"""Which of the files beside a model's weights go along with a merged one, and how."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mtk.model_folders.cleaning import clean
from mtk.model_folders.reading import CONFIG, companion, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIPELINE = "model_index.json"
MODULES = "modules.json"  # of sentence-transformers
OPEN_CLIP_CONFIG = "open_clip_config.json"
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
    CONFIG,
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
_NEVER = (".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors")


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a layout belongs to the tokenizer."""
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)


def companions(folder: Path, start: str = "") -> dict[str, Path | bytes]:
    """What belongs to a model beside its weights: name -> file, or its cleaned content.

    ``start`` stands before every name. Links out of the folder, pickles and code are
    passed over.
    """
    return {
        f"{start}{name}": _carried(file)
        for name, file in _candidates(folder)
        if companion(folder, file)
    }


def _candidates(folder: Path) -> Iterator[tuple[str, Path]]:
    inner = folder / CHAT_TEMPLATES
    templates = inner.is_dir() and not inner.is_symlink()
    nested = sorted(inner.glob("*.jinja")) if templates else ()
    for file in (*sorted(folder.iterdir()), *nested):
        name = file.relative_to(folder).as_posix()
        known = any(fnmatchcase(name, pattern) for pattern in _COMPANIONS)
        if known and not name.lower().endswith(_NEVER):
            yield name, file


def _carried(file: Path) -> Path | bytes:
    """The file, or its content without what would make a loader run code."""
    if not _is_config(file.name):
        return file
    value = read_json(file)
    kept = clean(value)
    return file if kept == value else dump(kept)


def _is_config(name: str) -> bool:
    return name.endswith(CONFIG) or name == PIPELINE


def left_out(folder: Path) -> list[str]:
    """What of a folder :func:`companions` leaves out because it is or names code."""
    notes = []
    code = sorted(file.name for file in folder.glob("*.py"))
    if code:
        notes.append(f"{folder / code[0]}: code of a checkpoint is never carried")
    for file in sorted(folder.glob("*.json")):
        if _is_config(file.name) and companion(folder, file):
            value = read_json(file)
            if clean(value) != value:
                notes.append(f"{file}: the keys that name code were left out")
    return notes


def dump(value: object) -> bytes:
    """JSON as libraries write it; half of a surrogate pair stays the escape it was."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"{text}\n".encode(errors="backslashreplace")
