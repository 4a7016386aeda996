"""Reading what stands beside weights: bounded, and only from inside the folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError
from mtk.files import belongs, open_plain

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "config.json"
# The largest tokenizers in use take 35 MB; what is larger is no companion of a model.
LARGEST = 128 * 2**20
DEEPEST = 100
_PICKLES = (b"\x80", b"PK\x03\x04")


def read_json(
    source: Path | bytes,
    *,
    owner: str = "its content",
    most: int = LARGEST,
    unique: bool = False,
) -> Any:
    """What a JSON file says, if it is one of bearable size and depth.

    Args:
        source: a file, or the content of one.
        owner: what messages call the content; files are called by their paths.
        most: how many bytes it may have.
        unique: refuse keys that stand twice.

    Raises:
        CheckpointError: it is damaged, too large, or nested too deeply.
    """
    where = owner if isinstance(source, bytes) else str(source)
    try:
        text = source if isinstance(source, bytes) else _content(source, most)
        if len(text) > most:
            raise CheckpointError(f"{where} is larger than {most:,} bytes")
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not a readable JSON file: {error}") from error
    if _too_deep(value):
        raise CheckpointError(f"{where} is nested more than {DEEPEST} levels deep")
    return value


def read_object(
    source: Path | bytes,
    *,
    owner: str = "its content",
    most: int = LARGEST,
    unique: bool = False,
) -> dict[str, Any]:
    """A JSON object, read like :func:`read_json`."""
    found = read_json(source, owner=owner, most=most, unique=unique)
    if not isinstance(found, dict):
        where = owner if isinstance(source, bytes) else source
        raise CheckpointError(
            f"{where} holds a {type(found).__name__}, not a JSON object"
        )
    return found


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """A JSON object of a folder; an empty one where there is none."""
    file = folder / name
    return read_object(file) if belongs(folder, file) else {}


def companion(folder: Path, file: Path) -> bool:
    """Whether a file can be carried over: there, of the folder, and no pickle.

    Raises:
        CheckpointError: it is too large to be what its name says.
    """
    if not belongs(folder, file):
        return False
    if file.stat().st_size > LARGEST:
        raise CheckpointError(
            f"{file} has {file.stat().st_size >> 20} MiB, more than any tokenizer or config"
        )
    with open_plain(file) as handle:
        return not handle.read(4).startswith(_PICKLES)


def check_inside(folder: Path, file: Path) -> None:
    """Refuse a file that is no plain file of its folder."""
    if belongs(folder, file):
        return
    if not file.is_symlink():
        raise CheckpointError(f"{file} is no plain file")
    raise CheckpointError(
        f"{file} is a link to a file outside its folder, which is not followed\n"
        "Name that file itself, or put it there"
    )


def _content(file: Path, most: int) -> bytes:
    with open_plain(file) as handle:
        return handle.read(most + 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True
