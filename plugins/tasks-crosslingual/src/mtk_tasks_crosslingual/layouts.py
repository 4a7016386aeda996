"""Where the rows of a data set lie, and the layouts in which they may lie there.

``ROOT/data/SET/SPLIT.jsonl`` has one row of the Hub's data set in a line; a folder
``ROOT/data/SET/SPLIT`` written by ``datasets`` (``save_to_disk``) will do as well. So
will two kinds of files as their authors published them: ``SPLIT.json`` of SQuAD and
XQuAD, and ``SPLIT.txt`` of XL-WiC with ``SPLIT.gold.txt`` where it has no labels.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Row = Mapping[str, Any]

_TXT_FIELDS = 8  # word, part of speech, two spans, two sentences; then the label


def place(root: Path, name: str, file: str) -> Path | None:
    """The file or folder with a data set's rows, if it is there."""
    folder = root / "data" / name
    for suffix in _READERS:
        if (folder / (file + suffix)).is_file():
            return folder / (file + suffix)
    return folder / file if (folder / file / "state.json").is_file() else None


def rows(file: Path) -> Iterator[Row]:
    """The rows of a file or folder, as the Hub's data sets have them.

    Raises:
        UsageError: it cannot be read.
    """
    if file.is_dir():
        yield from _saved(file)
        return
    try:
        yield from _READERS[file.suffix](file)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {first_line(error)}") from error


def _lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: not JSON: {error}") from error
                yield row


def _squad(file: Path) -> Iterator[Row]:
    """SQuAD 1.1 as published: articles, their paragraphs, their questions."""
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                yield {
                    "id": asked["id"],
                    "question": asked["question"],
                    "context": paragraph["context"],
                    "answers": {"text": [a["text"] for a in asked["answers"]]},
                }


def _xlwic(file: Path) -> Iterator[Row]:
    """XL-WiC as published: fields between tabs, no header, no quotation marks."""
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    gold = file.with_name(f"{file.stem}.gold.txt")
    if gold.is_file():
        labels = gold.read_text(encoding="utf-8").split()
        if len(labels) != len(lines):
            raise ValueError(f"{gold.name} has another number of lines")
        lines = [f"{line}\t{label}" for line, label in zip(lines, labels, strict=True)]
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) != _TXT_FIELDS + 1 or fields[-1] not in ("0", "1"):
            raise ValueError(
                f"line {number} is not {_TXT_FIELDS} fields and a label 0 or 1"
            )
        yield {
            "target_word": fields[0],
            "context_1": fields[6],
            "context_2": fields[7],
            "label": int(fields[-1]),
        }


def _saved(folder: Path) -> Iterator[Row]:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise UsageError(
            f"{folder} was written by datasets, which is not installed\n"
            'pip install "mtk-tasks-crosslingual[download]"'
        ) from error
    yield from load_from_disk(str(folder))


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _lines,
    ".json": _squad,
    ".txt": _xlwic,
}
