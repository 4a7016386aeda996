"""A transformers folder: its configuration, its weights, the files beside them.

Only safetensors and plain JSON are read, nothing that a file names outside its folder is
opened, and no Python file is ever carried over.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# A weight_map of 100,000 tensors is about 10 MB.
MOST_BYTES = 50_000_000
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_OTHER_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def parse_json(text: bytes, owner: str) -> dict[str, Any]:
    """A JSON object of bounded size."""
    if len(text) > MOST_BYTES:
        raise CheckpointError(f"{owner}: larger than {MOST_BYTES:,} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{owner}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{owner}: not a JSON object")
    return value


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        with file.open("rb") as handle:
            text = handle.read(MOST_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    return parse_json(text, str(file))


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; it is not a model folder")
    return read_json(folder / CONFIG)


def weight_map(folder: Path) -> dict[str, Any] | None:
    """Tensor name -> shard, from the index; None where there is no index."""
    if not (folder / INDEX).is_file():
        return None
    table = read_json(folder / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{folder / INDEX}: not an index of shards")
    for name in set(map(str, table.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / INDEX} names {name!r}, which is not a file beside it"
            )
    return table


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights."""
    table = weight_map(folder)
    if table is not None:
        return [folder / name for name in sorted(set(map(str, table.values())))]
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
    return [folder / WEIGHTS]


def open_weights(folder: Path, label: str | None = None) -> SafetensorsCheckpoint:
    """All tensors of a folder; the index must say the same as its shards."""
    source = SafetensorsCheckpoint(weight_files(folder), label or str(folder))
    table = weight_map(folder)
    if table is not None and set(table) != set(source.names()):
        odd = min(set(table) ^ set(source.names()))
        raise CheckpointError(f"{folder / INDEX} and its shards disagree about {odd!r}")
    return source


def tensor_names(folder: Path) -> list[str]:
    """Names from the index or the header, without a look at the shards."""
    table = weight_map(folder)
    if table is not None:
        return list(table)
    with _opened(folder / WEIGHTS) as handle:
        return list(handle.keys())


def shape_of(folder: Path, name: str) -> tuple[int, ...]:
    """The shape of one tensor, from the header of the file it is in."""
    table = weight_map(folder)
    file = WEIGHTS if table is None else str(table[name])
    with _opened(folder / file) as handle:
        return tuple(handle.get_slice(name).get_shape())


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist")
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a readable safetensors file: {first_line(error)}"
        ) from error


def companions(folder: Path) -> dict[str, Path | bytes]:
    """What belongs to the model beside its weights, but no code and no path to code."""
    config = read_config(folder)
    files: dict[str, Path | bytes] = {CONFIG: folder / CONFIG}
    if without_code(config) != config:
        files[CONFIG] = dump(without_code(config))
    for name in (*_OTHER_FILES, *TOKENIZER_FILES):
        if (folder / name).is_file():
            files[name] = folder / name
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        if file.is_file():
            files[f"additional_chat_templates/{file.name}"] = file
    return files


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the classes it would load from Python files."""
    return {key: value for key, value in config.items() if key != "auto_map"}


def is_tokenizer_file(name: str) -> bool:
    """Whether a companion belongs to the tokenizer."""
    return name in TOKENIZER_FILES or name.startswith("additional_chat_templates/")


def dump(config: Mapping[str, Any], *, ordered: bool = True) -> bytes:
    """A configuration as the text of a file; ``ordered`` sorts its keys."""
    text = json.dumps(config, indent=2, sort_keys=ordered, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"
