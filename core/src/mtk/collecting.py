"""Statistics that are computed once and kept, with what they cost and what was said."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtk.checkpoint import SafetensorsCheckpoint, StateDict
from mtk.errors import CheckpointError
from mtk.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from mtk.adapters import Checkpoint

# Raise it when the code of statistics gives other numbers; kept ones do not count then.
_VERSION = "2"


@dataclass(slots=True)
class Collected:
    """Statistics of all experts, what they cost, and what was done otherwise than asked."""

    files: dict[str, list[Checkpoint]] = field(default_factory=dict)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, found: Checkpoint, cost: Mapping[str, Any]) -> None:
        """The statistic of one more expert."""
        self.files.setdefault(name, []).append(found)
        self.seconds += float(cost["seconds"])
        self.notes += [note for note in cost["notes"] if note not in self.notes]


def kept(
    folder: Path,
    name: str,
    identity: Mapping[str, Any],
    label: str,
    make: Callable[[Callable[[str], None]], dict[str, Tensor]],
) -> tuple[Checkpoint, Mapping[str, Any]]:
    """A statistic from the ``folder``, or made and put there.

    Args:
        folder: of all kept statistics.
        name: of the statistic.
        identity: everything that decides it.
        label: what messages call it.
        make: computes it; is given a function that takes notes.

    Returns:
        The statistic, and its cost: ``seconds`` and ``notes``.
    """
    from safetensors.torch import save

    text = json.dumps([_VERSION, name, dict(identity)], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    path, told = folder / f"{name}-{key}.safetensors", folder / f"{name}-{key}.json"
    try:
        return SafetensorsCheckpoint([path], label), json.loads(told.read_text())
    except (CheckpointError, OSError, ValueError):
        pass
    notes: list[str] = []
    start = time.perf_counter()
    values = make(notes.append)
    cost = {"seconds": time.perf_counter() - start, "notes": notes}
    replace_file(path, [save(values)])
    replace_file(told, [json.dumps(cost).encode()])
    return StateDict(values, label), cost
