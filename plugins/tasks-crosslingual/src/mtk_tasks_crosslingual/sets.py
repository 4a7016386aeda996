"""The data sets: which a cell takes, how they are cut into splits, what rows say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk_tasks_crosslingual.cells import Cuts, parse
from mtk_tasks_crosslingual.layouts import place, rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mtk_tasks_crosslingual.layouts import Row

NAMES = {"ar": "arabic", "de": "german", "en": "english", "ko": "korean", "th": "thai"}
YES_NO = ("YES", "NO", "NONE")
_LONG_WORDS = 24  # of a paragraph, to be continued: half is given, half is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One item: what its prompt says, and what is right.

    Args:
        fields: of the templates.
        answers: right texts; all of them count, the first is trained.
        label: number of the right answer, where answers are ranked; else -1.
        number: of the underlying item, the same in all languages where that is known.
    """

    fields: dict[str, str]
    answers: tuple[str, ...] = ()
    label: int = -1
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A data set of one cell: its folder, and the files that its splits are cut from."""

    folder: str
    files: Mapping[str, str]


_OWN = {"train": "train", "validation": "validation", "test": "test"}
_CUT = {"train": "train", "validation": "train", "test": "validation"}
_ONE = {"train": "", "validation": "all", "test": "all"}


def set_of(cell: str) -> Set:
    """The data set of a cell."""
    task, language = parse(cell)
    if cell == "qa-en":
        return Set(folder="squad", files=_CUT)
    if task in ("qa", "continuation"):
        return Set(folder=f"xquad.{language}", files=_ONE)
    if task == "nli":
        return Set(folder=f"xnli.{language}", files=_OWN)
    if task == "summary":
        files = dict.fromkeys(_OWN, "train")
        return Set(folder=f"wiki_lingua.{NAMES[language]}", files=files)
    if cell == "sense-en":
        return Set(folder="wic", files=_CUT)
    if cell == "sense-ko":
        return Set(folder="xlwic.ko", files=_OWN | {"train": ""})
    if task == "sense":
        return Set(folder=f"xlwic.{language}", files=_OWN)
    return Set(folder="tydiqa", files=_CUT)


def examples(root: Path, cell: str, split: str, cuts: Cuts) -> list[Example]:
    """The items of one split of one cell, in the order of the data.

    Raises:
        UsageError: there is no such file, or a row of it is not as the Hub's are.
    """
    found = set_of(cell)
    file = found.files[split]
    if not file:
        raise UsageError(f"{cell} has no {split} items; nothing is trained on it")
    where = place(root, found.folder, file)
    if where is None:
        raise UsageError(
            f"{cell}: there is no {root / 'data' / found.folder / file}.jsonl\n"
            "mtk tracks prepare crosslingual-mt5 --root DIR says what is missing"
        )
    result = []
    for position, row in enumerate(rows(where)):
        example = example_of(cell, row, f"{found.folder}:{file}:{position}", where)
        if example is not None:
            result.append(example)
    chosen = _cut(result, found, split, cuts)
    if not chosen:
        raise UsageError(
            f"{where}: {len(result)} items are too few for a {split} split"
        )
    return chosen


def example_of(cell: str, row: Row, name: str, where: Path) -> Example | None:
    """What a row says, if it is one of the cell's.

    Raises:
        UsageError: it is not as the Hub's are.
    """
    task, language = parse(cell)
    try:
        return _READERS.get(cell, _READERS[task])(row, language, name)
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"{where}: row {name.rpartition(':')[2]} is not as the Hub's rows are: "
            f"{error!r}"
        ) from error


def least(cell: str, splits: Sequence[str], cuts: Cuts) -> int:
    """Items that one file must have, so that each of these splits has one."""
    source = set_of(cell)
    if source.files is _ONE:
        return cuts.xquad_validation + 1
    if source.folder.startswith("wiki_lingua"):
        both = cuts.wiki_test + (cuts.wiki_validation if "train" in splits else 0)
        return both + 1
    return cuts.held_back + 1 if source.files is _CUT and "train" in splits else 1


def _cut(
    found: Sequence[Example], source: Set, split: str, cuts: Cuts
) -> list[Example]:
    """The part of a file's items that belongs to a split."""
    items = list(found)
    if source.files is _ONE:
        middle = cuts.xquad_validation
        return items[:middle] if split == "validation" else items[middle:]
    if source.folder.startswith("wiki_lingua"):
        end = max(len(items) - cuts.wiki_test, 0)
        start = max(end - cuts.wiki_validation, 0)
        return {"train": items[:start], "validation": items[start:end]}.get(
            split, items[end:]
        )
    if source.files is _CUT and split != "test":
        end = max(len(items) - cuts.held_back, 0)
        return items[:end] if split == "train" else items[end:]
    return items


def number_of(name: str) -> int:
    """A number below 2^52 that stands for an item in all cells."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 12


def _qa(row: Row, language: str, name: str) -> Example:  # noqa: ARG001
    answers = tuple(dict.fromkeys(str(text) for text in row["answers"]["text"]))
    if not answers:
        raise ValueError("a question without an answer")
    return Example(
        fields={"question": row["question"], "context": row["context"]},
        answers=answers,
        number=number_of(f"xquad:{row['id']}"),
    )


def _continuation(row: Row, language: str, name: str) -> Example | None:  # noqa: ARG001
    words = str(row["context"]).split()
    if len(words) < _LONG_WORDS:
        return None
    middle = len(words) // 2
    return Example(
        fields={"beginning": " ".join(words[:middle])},
        answers=(" ".join(words[middle:]),),
        # Several questions belong to a paragraph: they are one item for intervals.
        number=number_of(f"paragraph:{row['context']}"),
    )


def _nli(row: Row, language: str, name: str) -> Example:  # noqa: ARG001
    # Rows are parallel in all languages, so the place names the item.
    return Example(
        fields={"premise": row["premise"], "hypothesis": row["hypothesis"]},
        label=_label(row["label"], 3),
        number=number_of(f"xnli:{name.split(':', 1)[1]}"),
    )


def _summary(row: Row, language: str, name: str) -> Example | None:  # noqa: ARG001
    """The first section of an article; None for one without text."""
    article = row["article"]
    documents, summaries = article["document"], article["summary"]
    if not documents or not documents[0].strip() or not summaries[0].strip():
        return None
    return Example(
        fields={"document": documents[0]},
        answers=(summaries[0],),
        number=number_of(name),
    )


def _sense(row: Row, language: str, name: str) -> Example:  # noqa: ARG001
    return Example(
        fields={
            "word": row["target_word"],
            "first": row["context_1"],
            "second": row["context_2"],
        },
        label=_label(row["label"], 2),
        number=number_of(name),
    )


def _wic(row: Row, language: str, name: str) -> Example:  # noqa: ARG001
    return Example(
        fields={
            "word": row["word"],
            "first": row["sentence1"],
            "second": row["sentence2"],
        },
        label=_label(row["label"], 2),
        number=number_of(name),
    )


def _answerability(row: Row, language: str, name: str) -> Example | None:
    """The first annotation's yes or no; None for another language's row."""
    if row["language"] != NAMES[language]:
        return None
    annotations = row["annotations"]
    if isinstance(annotations, list):  # as in the original files
        first = annotations[0]["yes_no_answer"]
    else:
        first = annotations["yes_no_answer"][0]
    return Example(
        fields={
            "question": row["question_text"],
            "document": row["document_plaintext"],
        },
        label=YES_NO.index(first),
        number=number_of(name),
    )


def _label(value: Any, count: int) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"label {value!r}")
    return value


_READERS = {
    "qa": _qa,
    "continuation": _continuation,
    "nli": _nli,
    "summary": _summary,
    "sense": _sense,
    "sense-en": _wic,
    "answerability": _answerability,
}
