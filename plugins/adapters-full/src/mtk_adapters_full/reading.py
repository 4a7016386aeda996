"""Reading what stands beside weights: bounded in size, and only from inside the folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

# The largest tokenizers in use take 35 MB; what is larger is no companion of a model.
LARGEST = 128 * 2**20
DEEPEST = 100
_PICKLES = (b"\x80", b"PK\x03\x04")


def belongs(folder: Path, file: Path) -> bool:
    """Whether a path is a plain file of its folder.

    A link may lead to another file of the folder, or, in the cache of the Hub, from
    ``REPOSITORY/snapshots/REVISION/...`` to ``REPOSITORY/blobs/HASH``; nowhere else.
    """
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError):  # dangling, or a circle of links
        return False
    if not real.is_file():
        return False
    place = folder.absolute()
    blobs = [
        above.parent.resolve() / "blobs"
        for above in (place, *place.parents)
        if above.name == "snapshots"
    ]
    return real.is_relative_to(place.resolve()) or real.parent in blobs


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
    with file.open("rb") as handle:
        return not handle.read(4).startswith(_PICKLES)


def read_json(source: Path | bytes) -> Any:
    """What a JSON file says, if it is one of bearable size.

    Raises:
        CheckpointError: it is damaged, too large, or nested too deeply.
    """
    where = "its content" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            return json.loads(source)
        with source.open("rb") as handle:
            text = handle.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise CheckpointError(f"{where} is larger than {LARGEST >> 20} MiB")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not a readable JSON file: {error}") from error


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object of a folder; an empty one where there is none."""
    file = folder / name
    if not belongs(folder, file):
        return {}
    found = read_json(file)
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not an object")
    return found


def clean(value: Any, depth: int = 0) -> Any:
    """A config without the keys that make a loader fetch or run code.

    ``auto_map`` names Python files, and an ``attn_implementation`` may name a repository
    of compiled kernels.

    Raises:
        CheckpointError: it is nested more deeply than any config.
    """
    if depth > DEEPEST:
        raise CheckpointError(f"a config is nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        return {
            k: clean(v, depth + 1) for k, v in value.items() if not _runs_code(k, v)
        }
    if isinstance(value, list):
        return [clean(item, depth + 1) for item in value]
    return value


def _runs_code(key: str, value: Any) -> bool:
    if key.endswith("_implementation"):
        return isinstance(value, dict) or "/" in str(value)
    return key in ("auto_map", "custom_pipelines")
