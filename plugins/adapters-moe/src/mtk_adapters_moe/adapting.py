"""Configurations and names that fit a merged mixture of experts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk_adapters_moe import folder, tokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mtk.adapters import Changes, Layout, Piece
    from mtk.declare import TensorInfo

_LAYER = re.compile(r"(?P<head>(?:.*\.)?layers\.)(?P<number>\d+)(?P<tail>\..+)")


def adapt(layout: Layout, changes: Changes) -> Layout:
    """The layout with a configuration that fits the merged model.

    A number of layers is refused for models whose layers differ.
    """
    files = dict(layout.files)
    if changes.tokenizer is not None:
        files = {n: f for n, f in files.items() if not folder.is_tokenizer_file(n)}
        theirs = changes.tokenizer.files
        files |= {n: f for n, f in theirs.items() if folder.is_tokenizer_file(n)}
        tokens.take_special_ids(files, theirs)
    if changes.added_tokens:
        tokens.extend(files, changes.added_tokens)
    config = _config(files.get(folder.CONFIG))
    pieces, stored = layout.pieces, layout.stored
    inner = _language_model(config)
    if changes.layers is not None:
        before = _layers_before(inner)
        _set_layers(config, inner, changes.layers)
        pieces, stored = _spread(pieces, stored, before, changes.layers)
    if changes.rows is not None:
        inner["vocab_size"] = changes.rows
    if changes.tied is not None:
        config["tie_word_embeddings"] = changes.tied
    if changes.dtype is not None:
        _set_dtype(config, changes.dtype)
    files[folder.CONFIG] = folder.dump(config)
    return replace(layout, files=files, pieces=pieces, stored=stored)


def _config(content: Path | bytes | None) -> dict[str, Any]:
    if content is None:
        raise CheckpointError(
            f"the layout has no {folder.CONFIG} that could be changed"
        )
    if isinstance(content, bytes):
        return folder.parse_json(content, folder.CONFIG)
    return folder.read_json(content)


def _language_model(config: dict[str, Any]) -> dict[str, Any]:
    """The part that counts layers and words: of a model in a model, the text's."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """``dtype``, or ``torch_dtype`` as written before transformers 5, wherever it is."""
    tables = [config, *(v for v in config.values() if isinstance(v, dict))]
    found = False
    for table in tables:
        for key in ("dtype", "torch_dtype"):
            if isinstance(table.get(key), str):
                table[key], found = dtype, True
    if not found:
        config["dtype"] = dtype


def _layers_before(inner: Mapping[str, Any]) -> int:
    count = inner.get("num_hidden_layers")
    if not isinstance(count, int) or count < 1:
        raise CheckpointError(f"{folder.CONFIG} has no num_hidden_layers")
    return count


def _set_layers(config: dict[str, Any], inner: dict[str, Any], layers: int) -> None:
    """Refuse models of which a number does not say what each layer is."""
    lists = [key for key, value in inner.items() if key == "layer_types" and value]
    for key in lists:
        if len(set(inner[key])) > 1:
            raise UsageError(f"layers cannot be stacked: {key} says that they differ")
        inner[key] = [inner[key][0]] * layers
    dense = ("first_k_dense_replace", "mlp_only_layers", "num_nextn_predict_layers")
    odd = [key for key in dense if inner.get(key)]
    if inner.get("decoder_sparse_step", 1) != 1:
        odd.append("decoder_sparse_step")
    if inner.get("interleave_moe_layer_step", 1) != 1:
        odd.append("interleave_moe_layer_step")
    if odd or config is not inner:
        raise UsageError(
            "layers of this mixture of experts cannot be stacked: they are not all alike "
            f"({', '.join(odd) or 'a model inside a model'})"
        )
    inner["num_hidden_layers"] = layers


def _spread(
    pieces: Mapping[str, Piece],
    stored: Mapping[str, TensorInfo],
    before: int,
    after: int,
) -> tuple[dict[str, Piece], dict[str, TensorInfo]]:
    """Pieces of every layer of the result, after the example of the first layer."""
    if not pieces:
        return {}, {}
    by_layer: list[dict[tuple[str, str], tuple[str, Piece]]] = [
        {} for _ in range(before)
    ]
    for name, piece in pieces.items():
        found, place = _LAYER.fullmatch(name), _LAYER.fullmatch(piece.stored)
        if not found or not place or int(found["number"]) >= before:
            raise UsageError(f"layers cannot be stacked: {name!r} belongs to none")
        key = found["head"], found["tail"]
        by_layer[int(found["number"])][key] = place["tail"], replace(piece, stored="")
    if any(layer != by_layer[0] for layer in by_layer):
        raise UsageError("layers cannot be stacked: they are not stored alike")
    first: dict[str, TensorInfo] = {}
    heads: dict[str, str] = {}
    for name, info in stored.items():
        found = _LAYER.fullmatch(name)
        if found and int(found["number"]) == 0:
            first[found["tail"]], heads[found["tail"]] = info, found["head"]
    result: dict[str, Piece] = {}
    places: dict[str, TensorInfo] = {}
    for number in range(after):
        for (head, tail), (stored_tail, piece) in by_layer[0].items():
            where = f"{heads[stored_tail]}{number}{stored_tail}"
            result[f"{head}{number}{tail}"] = replace(piece, stored=where)
            places[where] = replace(first[stored_tail], name=where)
    return result, places
