"""What a track file says, checked. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  dataclasses are inspected by their users
from typing import Literal

Kind = Literal["held_in", "generalization", "ability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where items come from: a task of the harness, or a JSONL file."""

    task: str = ""
    data: Path | None = None

    @property
    def label(self) -> str:
        """For messages, and as the default name of the items."""
        return self.task or str(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of the grid.

    Args:
        kind: held in (it has an expert), generalization, or ability of the base.
        expert: path or Hub address of its expert; empty if it has none.
        source: its items.
        validation: other items to choose parameters on, or the share of the items.
        metrics: of the harness for a task, of mtk for a JSONL file; the first ranks.
        limit: how many items are used, from the first on; None is all.
        num_fewshot: solved examples in the prompt; None leaves it to the task.
        include: folders of task files, besides those of the harness.
        filter: of the harness, where a task has several; empty is the first.
        items: cells with the same name here have the same items in the same order.
        normalise: divide the likelihood of an answer by its length (JSONL only).
        max_new_tokens: of a generated answer (JSONL only).
        until: texts that end a generated answer (JSONL only).
    """

    name: str
    kind: Kind
    source: Source
    expert: str = ""
    validation: float | Source = 0.2
    metrics: tuple[str, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    include: tuple[Path, ...] = ()
    filter: str = ""
    items: str = ""
    factors: tuple[tuple[str, str], ...] = ()
    normalise: bool = False
    max_new_tokens: int = 64
    until: tuple[str, ...] = ("\n",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A whole track file. Models are paths, or addresses that begin with ``hf://``."""

    path: Path
    name: str
    summary: str
    base: str
    cells: tuple[Cell, ...]
    version: str
    setting: str = "language"
    multitask: str = ""
    tokenizer: str = ""
    adapter: str = "full"
    merge: tuple[str, ...] = ("*",)
    batch_size: int = 8
    max_length: int | None = None
    chat_template: bool = False
    dtype: str = "float32"
    download: bool = False

    def cell(self, name: str) -> Cell:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)
