"""Writing a new adapter: a folder that appears complete or not at all.

The scale is inside the factors (alpha = rank, not rank-stabilised), so that it cannot get
lost on the way. No name of a base is written: it would be followed by loaders.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mtk
from mtk.checkpoint import describe
from mtk.errors import ParameterError, UsageError
from mtk.files import replace_file
from mtk.writing import layout, write_safetensors
from mtk_adapters_lora.formats import CONFIG, DIFFUSERS, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtk_adapters_lora.result import NewAdapter, Update

_DTYPES = ("float32", "float16", "bfloat16")
_PREFIX = "base_model.model."


def save(adapter: NewAdapter, folder: Path | str, *, dtype: str = "float32") -> Path:
    """Write ``folder``, which must not exist.

    Args:
        adapter: what :func:`combine` or :func:`extract` returned.
        folder: a PEFT folder, or for adapters of diffusers a folder with
            ``pytorch_lora_weights.safetensors``.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
    """
    target = Path(folder)
    if dtype not in _DTYPES:
        raise ParameterError(f"dtype is {dtype!r}; write one of {', '.join(_DTYPES)}")
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists; choose another output")
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist")
    peft = adapter.file_format == "peft"
    tensors = {}
    for module, update in adapter.updates.items():
        for part, factor in _stored(update).items():
            name = f"{_PREFIX if peft else ''}{module}.{part}"
            tensors[name] = _cast(factor, getattr(torch, dtype), name)
    try:
        partial = Path(
            tempfile.mkdtemp(
                prefix=f".{target.name}.", suffix=".partial", dir=target.parent
            )
        )
    except OSError as error:
        raise UsageError(f"{target} could not be written: {error}") from error
    try:
        _write_tensors(partial / (WEIGHTS if peft else DIFFUSERS), tensors)
        if peft:
            _write_json(partial / CONFIG, peft_config(adapter))
        report = {"mtk": mtk.__version__, **adapter.provenance}
        _write_json(partial / "mtk.json", report)
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"{target} could not be written: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def peft_config(adapter: NewAdapter) -> dict[str, Any]:
    """The ``adapter_config.json`` of a new adapter."""
    ranks = {name: update.rank for name, update in adapter.updates.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    names = sorted(ranks)
    patterns = _patterns(names)
    odd = {patterns[n]: r for n, r in ranks.items() if r != usual}
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": _targets(names),
    }


def _endings(names: list[str]) -> set[str]:
    """All proper ends of the paths, at dots."""
    return {
        name.split(".", cut)[-1]
        for name in names
        for cut in range(1, name.count(".") + 1)
    }


def _patterns(names: list[str]) -> dict[str, str]:
    """PEFT matches ends of paths; ``^`` keeps a short name from matching others."""
    endings = _endings(names)
    alike = Counter(name.replace(".", "_") for name in names)
    patterns = {}
    for name in names:
        exact = alike[name.replace(".", "_")] > 1
        pattern = re.escape(name) if exact else name
        patterns[name] = f"^{pattern}" if name in endings else pattern
    return patterns


def _targets(names: list[str]) -> list[str] | str:
    """A list is matched by the ends of paths as well, a string as a whole."""
    if not _endings(names) & set(names):
        return names
    return "|".join(re.escape(name) for name in names)


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


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    infos = layout(describe(n, t.shape, t.dtype) for n, t in tensors.items())
    stream = ((info.name, tensors[info.name]) for info in infos)
    write_safetensors(path, infos, stream, {"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    replace_file(path, [json.dumps(content, indent=2, default=str).encode()])
