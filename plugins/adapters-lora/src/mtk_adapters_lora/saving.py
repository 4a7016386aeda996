"""Writing a new adapter: a folder that appears complete or not at all.

The scale is inside the factors (alpha = rank, not rank-stabilised), so that it cannot get
lost on the way. No name of a base is written: it would be followed by loaders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mtk
from mtk.checkpoint import describe
from mtk.errors import ParameterError, UsageError
from mtk.folders import (
    CARD,
    check_folder,
    check_space,
    new_folder,
    put_file,
    write_manifest,
)
from mtk.writing import layout, write_safetensors
from mtk_adapters_lora.card import card
from mtk_adapters_lora.configured import (
    diffusers_metadata,
    peft_config,
    pipeline_names,
)
from mtk_adapters_lora.formats import CONFIG, DIFFUSERS, METADATA, PREFIX, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtk_adapters_lora.result import NewAdapter, Update

_DTYPES = ("float32", "float16", "bfloat16")


def save(
    adapter: NewAdapter,
    folder: Path | str,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Write ``adapter`` into a new folder that PEFT or diffusers loads.

    Args:
        adapter: what :func:`combine` or :func:`extract` returned.
        folder: a PEFT folder, or for adapters of diffusers a folder with
            ``pytorch_lora_weights.safetensors``.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        overwrite: replace a folder that mtk wrote.
    """
    target = Path(folder)
    check_output(target, adapter.inputs, dtype=dtype, overwrite=overwrite)
    peft = adapter.file_format == "peft"
    updates = adapter.updates if peft else pipeline_names(adapter)
    tensors = {}
    for module, update in updates.items():
        for part, factor in _stored(update).items():
            name = f"{PREFIX if peft else ''}{module}.{part}"
            tensors[name] = _cast(factor, getattr(torch, dtype), name)
    check_space(target, sum(tensor.nbytes for tensor in tensors.values()))
    header = {"format": "pt"}
    if not peft:
        header[METADATA] = json.dumps(diffusers_metadata(updates), sort_keys=True)
    with new_folder(target, overwrite=overwrite) as partial:
        _write_tensors(partial / (WEIGHTS if peft else DIFFUSERS), tensors, header)
        if peft:
            content = json.dumps(peft_config(adapter), indent=2)
            put_file(partial, CONFIG, content.encode())
        put_file(partial, CARD, card(adapter, target.name, dtype).encode())
        made = {"mtk": mtk.__version__, "dtype": dtype, **adapter.provenance}
        made["relative_error"] = adapter.relative_error
        write_manifest(partial, made)
    return target


def check_output(
    folder: Path, inputs: Any = (), *, dtype: str = "float32", overwrite: bool = False
) -> None:
    """Refuse what :func:`save` would refuse."""
    if dtype not in _DTYPES:
        raise ParameterError(f"dtype is {dtype!r}; write one of {', '.join(_DTYPES)}")
    check_folder(folder, inputs, overwrite=overwrite)


def _stored(update: Update) -> dict[str, Tensor]:
    if update.kind == "embedding":
        return {"lora_embedding_A": update.a, "lora_embedding_B": update.b}
    a, b = update.a, update.b
    if update.kind == "conv":
        a = a.reshape(update.rank, -1, *update.kernel)
        b = b.reshape(b.shape[0], -1, *[1] * len(update.kernel))
    return {"lora_A.weight": a, "lora_B.weight": b}


def _cast(factor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    cast = factor.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise UsageError(f"{name!r} does not fit {dtype}; write float32")
    return cast


def _write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]
) -> None:
    infos = layout(describe(n, t.shape, t.dtype) for n, t in tensors.items())
    stream = ((info.name, tensors[info.name]) for info in infos)
    write_safetensors(path, infos, stream, header)
