"""Writing an upcycled model: a folder that appears complete or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import mtk
from mtk.adapters import Layout
from mtk.errors import CheckpointError
from mtk.folders import (
    CARD,
    check_folder,
    check_space,
    hashes,
    new_folder,
    put_file,
    write_manifest,
)
from mtk.model_folders.carrying import companions, dump
from mtk.model_folders.reading import CONFIG
from mtk.provenance import FORMAT
from mtk.shards import indexes, open_weights, order, plan, size_of
from mtk_adapters_moe import folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.declare import TensorInfo


def write_model(
    output: Path,
    *,
    donor: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[TensorInfo, Callable[[], Tensor]]],
    inputs: Sequence[Path],
    record: Mapping[str, Any],
    warnings: Sequence[str],
    overwrite: bool,
) -> int:
    """Make and write one tensor after the other; return the bytes of the weights."""
    check_folder(output, inputs, overwrite=overwrite)
    files = {**companions(donor), CONFIG: dump(dict(sorted(config.items())))}
    layout = Layout(family="transformers", files=files)
    infos = [info for info, _ in tensors.values()]
    size = sum(map(size_of, infos))
    check_space(output, size)
    shards = plan(layout, infos)
    with new_folder(output, overwrite=overwrite) as partial:
        with open_weights(partial, layout, shards, {"format": "pt"}) as weights:
            for name in order(layout, shards, tensors):
                info, make = tensors[name]
                weights.put(name, 0, _fitting(name, make(), info))
        for name, content in {**files, **indexes(layout, shards)}.items():
            put_file(partial, name, content)
        put_file(partial, CARD, _card(record, inputs, warnings).encode())
        known = {place: _input(place) for place in set(inputs)}
        manifest = {
            "mtk": mtk.__version__,
            "format": FORMAT,
            "upcycle": dict(record),
            "warnings": list(warnings),
            "inputs": [known[place] for place in inputs],
        }
        write_manifest(partial, manifest)
    return size


def _fitting(name: str, tensor: Tensor, info: TensorInfo) -> Tensor:
    """The tensor in the dtype of the result, with nothing but numbers in it."""
    if tuple(tensor.shape) != info.shape:
        raise CheckpointError(
            f"{name!r} came as {tuple(tensor.shape)}, not {info.shape}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"what {name!r} is made from contains NaN or infinity")
    cast = tensor.to(getattr(torch, info.dtype))
    if cast is not tensor and not bool(torch.isfinite(cast).all()):
        raise CheckpointError(
            f"{name!r} does not fit into {info.dtype}; choose another"
        )
    return cast


def _input(place: Path) -> dict[str, Any]:
    files = {file.name: file for file in folder.weight_files(place)}
    return {
        "name": place.name,
        "path": str(place.resolve()),
        "files": hashes({CONFIG: place / CONFIG, **files}),
    }


def _card(
    record: Mapping[str, Any], inputs: Sequence[Path], warnings: Sequence[str]
) -> str:
    """What the folder says about itself."""
    params = ", ".join(f"{key} {value}" for key, value in record["params"].items())
    lines = [
        "# A mixture of experts made from dense models",
        "",
        f"Made by mtk {mtk.__version__} (`mtk upcycle`) as {record['family']}: {params}.",
        "",
        f"Attention, norms, embeddings and tokenizer: {inputs[0].name}.",
        f"MLPs: {', '.join(place.name for place in inputs[1:])}.",
        "`manifest.json` holds hashes of all files, and the prompts.",
    ]
    if warnings:
        lines += ["", "Warnings:", *(f"- {text}" for text in warnings)]
    return "\n".join(lines) + "\n"
