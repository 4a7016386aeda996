"""The files that weights come as, and what is written beside those that were trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError, first_line
from mtk.roots import part, sampled_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mtk.roots import Part
    from mtk.training import Progress, Regime

_SHOWN = 3
# A pipeline of Stable Diffusion 2.1 in diffusers' layout.
SD21 = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
# What decides an adapter's training; the rest are settings.
SD21_DECIDING = tuple(
    file for file in SD21 if file.endswith((".safetensors", "scheduler_config.json"))
)


def weights_part(name: str, folder: Path, wanted: Sequence[str], source: str) -> Part:
    """Weights that are the user's to bring: a folder with some files.

    Of safetensors only what says where their tensors are is read.
    """
    lost = [file for file in wanted if not (folder / file).is_file()]
    if not lost:
        return _readable(name, folder, wanted, source)
    more = f" and {len(lost) - _SHOWN} more files" if len(lost) > _SHOWN else ""
    shown = ", ".join(lost[:_SHOWN]) + more
    return part(
        name,
        "weights",
        there=False,
        note=f"{folder.name} lacks {lost[0]}",
        todo=f"put {shown} of {source} into {folder}, or use --download",
    )


def _readable(name: str, folder: Path, files: Sequence[str], source: str) -> Part:
    for file in files:
        why = _fault(folder / file)
        if why:
            return part(
                name,
                "weights",
                there=False,
                note=f"not readable: {file}: {why}",
                todo=f"put {file} of {source} into {folder} again",
            )
    return part(name, "weights", there=True, note="there")


def _fault(file: Path) -> str:
    """Why a file cannot be read, in one line; empty if it can."""
    from mtk.checkpoint import SafetensorsCheckpoint

    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            SafetensorsCheckpoint([file], file.name)
    except (OSError, ValueError, RecursionError) as error:
        return first_line(error)
    except CheckpointError as error:
        return first_line(error).removeprefix(f"{file}: ")
    return ""


def hash_of(folder: Path, files: Sequence[str]) -> str:
    """What tells these files from others of their names; empty if one is not there."""
    try:
        return sampled_hash(folder / file for file in files)
    except OSError:
        return ""


def identity(*things: object) -> str:
    """What an unfinished run must have in common with the run that goes on with it."""
    return hashlib.sha256(json.dumps(things).encode()).hexdigest()


def one_file(source: Path, usual: str) -> Path:
    """The safetensors file that a path means: itself, the usual one, or the only one."""
    if source.is_file():
        return source
    if (source / usual).is_file():
        return source / usual
    found = sorted(source.glob("*.safetensors"))
    if len(found) != 1:
        raise UsageError(f"{source} holds {len(found)} safetensors files, not one")
    return found[0]


def facts(
    track: str, name: str, base: str, regime: Regime, progress: Progress
) -> dict[str, Any]:
    """What the manifest of a trained model says of its training."""
    return {
        "track": track,
        "made": name,
        "base": base,
        "regime": asdict(regime),
        "steps": progress.step,
        "best_step": progress.best_step,
        "history": progress.history,
    }
