"""Data sets from the Hub, on request only, as JSONL files with the Hub's own rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError, first_line
from mtk.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Data sets that were scripts are read from the Parquet files that the Hub made of them.
_CONVERTED = "refs/convert/parquet"
_LANGUAGES = {"de": "xlwic_de_de", "ko": "xlwic_en_ko"}
# Only what is read is kept: a Wikipedia page of TyDiQA has a lot besides.
_KEPT = {
    "tydiqa": ("language", "question_text", "document_plaintext", "annotations"),
}


def address(folder: str, file: str) -> tuple[str, str | None, str, str | None]:
    """Repository, configuration, split and revision of one file.

    >>> address("xquad.ar", "all")[:3]
    ('google/xquad', 'xquad.ar', 'validation')
    """
    name, _, part = folder.partition(".")
    table: dict[str, tuple[str, str | None, str, str | None]] = {
        "squad": ("rajpurkar/squad", None, file, None),
        "xquad": ("google/xquad", f"xquad.{part}", "validation", None),
        "xnli": ("facebook/xnli", part, file, None),
        "wiki_lingua": ("esdurmus/wiki_lingua", part, file, _CONVERTED),
        "xlwic": ("pasinit/xlwic", _LANGUAGES.get(part), file, _CONVERTED),
        "wic": ("aps/super_glue", "wic", file, _CONVERTED),
        "tydiqa": ("google-research-datasets/tydiqa", "primary_task", file, None),
    }
    return table[name]


def fetch(root: Path, name: str, report: Callable[[str, float], None]) -> None:
    """Download one file of one data set; it appears whole."""
    folder, _, file = name.partition("/")
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            "--download needs datasets, which is not installed\n"
            'pip install "mtk-tasks-crosslingual[download]"'
        ) from error
    repo, config, split, revision = address(folder, file)
    target = root / "data" / folder / f"{file}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    report(f"downloading {repo} {config or ''} {split}", 0.0)
    try:
        rows = datasets.load_dataset(repo, config, split=split, revision=revision)
        replace_file(target, lines(rows, _KEPT.get(folder)))
    except UsageError:
        raise
    except Exception as error:  # whatever the Hub's client raises
        raise UsageError(
            f"{repo} could not be had from the Hub: {first_line(error)}\n"
            f"Put its rows into {target} by hand"
        ) from error
    report(f"{name} is there", 1.0)


def lines(rows: Any, kept: tuple[str, ...] | None) -> Iterator[bytes]:
    """Rows as lines of JSON, all of their fields or some."""
    for row in rows:
        chosen = row if kept is None else {key: row[key] for key in kept}
        yield json.dumps(chosen, ensure_ascii=False).encode() + b"\n"
