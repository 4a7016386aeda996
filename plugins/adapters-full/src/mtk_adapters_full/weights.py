"""Which files hold the weights of a model, component by component."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtk.errors import CheckpointError
from mtk.files import belongs
from mtk.model_folders.carrying import MODULES, PIPELINE
from mtk.model_folders.indexes import read_index
from mtk.model_folders.reading import check_inside, read_config, read_json

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = ".safetensors"
# Names of weights that libraries load, the most usual first. In a folder with several of
# them, the others are the same model for another library.
STEMS = ("model", "diffusion_pytorch_model", "open_clip_model")
_INDEX = re.compile(r"(?P<stem>.+?)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(\.\w+)?\.safetensors")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights of one component.

    Args:
        folder: where they are.
        files: in order; one, or the shards.
        stem: the name they would have as one file, without suffix or variant.
        index: that names the shards.
        table: tensors, as the index says.
        notes: what else was found and left alone.
    """

    folder: Path
    files: tuple[Path, ...]
    stem: str
    index: Path | None = None
    table: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def components(path: Path) -> dict[str, Weights]:
    """Component -> weights. A model that is no pipeline is one component, ``""``.

    Raises:
        CheckpointError: nothing, several models, or an index that lies.
    """
    if path.is_file():
        return {"": Weights(folder=path.parent, files=(path,), stem=path.stem)}
    found = {name: _find(path / name) for name in parts(path)}
    present = {name: weights for name, weights in found.items() if weights}
    if (path / PIPELINE).is_file():
        if not present:
            raise CheckpointError(f"{path}: no component of it has safetensors weights")
        return present
    root = _find(path)
    if root is None and not present:
        raise CheckpointError(
            f"{path} holds 0 safetensors files and no index; name one of them"
        )
    return ({"": root} if root else {}) | present


def parts(path: Path) -> tuple[str, ...]:
    """Subfolders that a pipeline (or sentence-transformers) says are parts of it."""
    if (path / PIPELINE).is_file():
        table = read_config(path, PIPELINE)
        names = [
            name
            for name, value in table.items()
            if isinstance(value, list) and len(value) == 2 and value[0] is not None
        ]
    elif (path / MODULES).is_file() and belongs(path, path / MODULES):
        found = read_json(path / MODULES)
        entries = found if isinstance(found, list) else []
        named = [entry.get("path") for entry in entries if isinstance(entry, dict)]
        names = [name for name in named if name]
    else:
        return ()
    inside = path.resolve()
    return tuple(
        name
        for name in names
        if isinstance(name, str)
        and _PLAIN_NAME.fullmatch(name)
        and (path / name).is_dir()
        and (path / name).resolve().is_relative_to(inside)
    )


def regular(folder: Path) -> list[Path]:
    """Its safetensors files; a pipe or a dangling link is none."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())


def _find(folder: Path) -> Weights | None:
    """The one model in a folder, or None where there is no safetensors file."""
    files = regular(folder)
    indexes = {
        ".".join(filter(None, match.group("stem", "variant"))): file
        for file in sorted(folder.glob("*.json"))
        if (match := _INDEX.fullmatch(file.name)) and file.is_file()
    }
    if not files and not indexes:
        return None
    singles = {file.stem: file for file in files if not _SHARD.fullmatch(file.name)}
    stem = _choose(folder, singles, indexes, files)
    others = sorted({*singles, *indexes} - {stem})
    notes = [f"{folder / other}{SUFFIX} was left alone" for other in others]
    table = read_index(indexes[stem]) if stem in indexes else {}
    chosen = [folder / name for name in sorted(set(table.values()))]
    if not table:
        chosen = [singles.get(stem) or files[0]]
        check_inside(folder, chosen[0])
    return Weights(
        folder=folder,
        files=tuple(chosen),
        stem=_without_variant(stem),
        index=indexes.get(stem),
        table=frozenset(table),
        notes=tuple(notes),
    )


def _choose(
    folder: Path,
    singles: dict[str, Path],
    indexes: dict[str, Path],
    files: list[Path],
) -> str:
    both = sorted(set(singles) & set(indexes))
    if both:
        raise CheckpointError(
            f"{folder} holds {both[0]}{SUFFIX} and an index of shards of the same name\n"
            "One of them is stale; name the file, or remove one"
        )
    names = sorted({*singles, *indexes})
    for stem in STEMS:
        if stem in names:
            return stem
    # ``consolidated`` is what Mistral calls the same weights under its own names.
    rest = [name for name in names if not name.startswith("consolidated")] or names
    plain = [name for name in rest if _without_variant(name) == name] or rest
    if len(plain) == 1:
        return plain[0]
    if not names and len(files) == 1:
        return files[0].stem
    variants = plain and _without_variant(plain[0]) != plain[0]
    what = "variants" if variants else "safetensors files and no index"
    raise CheckpointError(
        f"{folder} holds {len(plain) or len(files)} {what}; name one of them"
    )


def _without_variant(stem: str) -> str:
    """``model.fp16`` -> ``model``: only for names that libraries give."""
    head, dot, _ = stem.partition(".")
    return head if dot and head in STEMS else stem
