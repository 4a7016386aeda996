"""Configurations and names that fit a merged mixture of experts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.model_folders.adapting import adapted
from mtk.model_folders.reading import CONFIG, read_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtk.adapters import Changes, Layout, Piece
    from mtk.declare import TensorInfo

# Every which layer has experts.
_STEPS = ("decoder_sparse_step", "interleave_moe_layer_step")
_LAYER = re.compile(r"(?P<head>(?:.*\.)?layers\.)(?P<number>\d+)(?P<tail>\..+)")


def adapt(layout: Layout, changes: Changes) -> Layout:
    """The layout with a configuration that fits the merged model.

    A number of layers is refused for models whose layers differ.
    """
    if changes.layers is None or CONFIG not in layout.files:
        return adapted(layout, changes)
    before = _stackable(read_object(layout.files[CONFIG], owner=CONFIG))
    pieces, stored = _spread(layout.pieces, layout.stored, before, changes.layers)
    return replace(adapted(layout, changes), pieces=pieces, stored=stored)


def _stackable(config: Mapping[str, Any]) -> int:
    """The number of layers; refuse models of which it does not say what each layer is."""
    count = config.get("num_hidden_layers")
    dense = ("first_k_dense_replace", "mlp_only_layers", "num_nextn_predict_layers")
    odd = [key for key in dense if config.get(key)]
    odd += [key for key in _STEPS if config.get(key, 1) != 1]
    for key in ("layer_types", "mlp_layer_types"):
        kinds = config.get(key)
        if isinstance(kinds, list) and any(kind != kinds[0] for kind in kinds):
            odd.append(key)
    if isinstance(config.get("text_config"), dict):
        odd.append("a model inside a model")
    if odd or not isinstance(count, int) or count < 1:
        raise UsageError(
            "layers of this mixture of experts cannot be stacked: they are not all alike "
            f"({', '.join(odd) or 'no num_hidden_layers'})"
        )
    return count


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
