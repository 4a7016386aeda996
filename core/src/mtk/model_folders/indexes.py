"""Indexes of shards: which tensors a model has, and which files hold them."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import TYPE_CHECKING

from mtk.errors import CheckpointError
from mtk.model_folders.reading import check_inside, read_json

if TYPE_CHECKING:
    from collections.abc import Collection


def read_index(index: Path) -> dict[str, str]:
    """Tensor -> name of its shard, each a plain file beside the index.

    Raises:
        CheckpointError: it is no index, or names what is not there.
    """
    check_inside(index.parent, index)
    try:
        found = read_json(index)
    except CheckpointError as error:
        raise CheckpointError(f"{index}: not an index of shards: {error}") from error
    table = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index}: not an index of shards: no weight_map in it")
    for name in {repr(shard): shard for shard in table.values()}.values():
        plain = isinstance(name, str) and name not in ("", "..")
        if not plain or Path(name).name != name:
            raise CheckpointError(
                f"{index} names {name!r}, which is not a file beside it"
            )
        if not os.path.lexists(index.parent / name):
            raise CheckpointError(f"{index} names {name!r}, which does not exist")
        check_inside(index.parent, index.parent / name)
    return table


def check_index(index: Path, table: Collection[str], names: Collection[str]) -> None:
    """Refuse an index that says something else than the headers of its shards."""
    odd = set(table) ^ set(names)
    if odd:
        raise CheckpointError(f"{index} and its shards disagree about {min(odd)!r}")
