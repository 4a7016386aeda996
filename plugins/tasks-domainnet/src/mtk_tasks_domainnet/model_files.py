"""The files that weights come as, and what is written beside those that were trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.roots import part

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mtk.roots import Part
    from mtk.training import Progress, Regime

_SHOWN = 3


def weights_part(name: str, folder: Path, wanted: Sequence[str], source: str) -> Part:
    """Weights that are the user's to bring: a folder with some files."""
    lost = [file for file in wanted if not (folder / file).is_file()]
    more = f" and {len(lost) - _SHOWN} more files" if len(lost) > _SHOWN else ""
    shown = ", ".join(lost[:_SHOWN]) + more
    return part(
        name,
        "weights",
        there=not lost,
        note="there" if not lost else f"{folder.name} lacks {lost[0]}",
        todo=f"put {shown} of {source} into {folder}, or use --download",
    )


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


def facts(track: str, name: str, regime: Regime, progress: Progress) -> dict[str, Any]:
    """What the manifest of a trained model says of its training."""
    return {
        "track": track,
        "made": name,
        "regime": asdict(regime),
        "steps": progress.step,
        "best_step": progress.best_step,
        "history": progress.history,
    }
