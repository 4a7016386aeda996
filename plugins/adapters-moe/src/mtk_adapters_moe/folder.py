"""The folder of a mixture of experts, as transformers writes it: config and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.errors import CheckpointError, first_line
from mtk.files import belongs
from mtk.model_folders import reading
from mtk.model_folders.indexes import check_index, read_index
from mtk.model_folders.reading import CONFIG, check_inside

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's own ``config.json``, which must be there."""
    if not belongs(folder, folder / CONFIG):
        raise CheckpointError(f"{folder} has no {CONFIG}; it is not a model folder")
    return reading.read_config(folder)


def weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor name -> shard, from the index; None where there is no index."""
    if not (folder / INDEX).is_file():
        return None
    table = read_index(folder / INDEX)
    if (folder / WEIGHTS).is_file() and WEIGHTS not in table.values():
        raise CheckpointError(
            f"{folder} holds {WEIGHTS} and an index of other shards\n"
            "One of them is stale; remove it"
        )
    return table


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights."""
    table = weight_map(folder)
    if table is not None:
        return [folder / name for name in sorted(set(table.values()))]
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
    check_inside(folder, folder / WEIGHTS)
    return [folder / WEIGHTS]


def open_weights(folder: Path, label: str | None = None) -> SafetensorsCheckpoint:
    """All tensors of a folder; the index must say the same as its shards."""
    source = SafetensorsCheckpoint(weight_files(folder), label or str(folder))
    table = weight_map(folder)
    if table is not None:
        check_index(folder / INDEX, table, source.names())
    return source


def tensor_names(folder: Path) -> list[str]:
    """Names from the index or the header, without a look at the shards."""
    table = weight_map(folder)
    if table is not None:
        return list(table)
    (file,) = weight_files(folder)
    try:
        with safe_open(file, framework="pt") as handle:
            return list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a readable safetensors file: {first_line(error)}"
        ) from error
