"""The base and the data sets from the Hub, on request only.

No download could be run where this was written. ``docs/explanation/crosslingual-mt5.md``
says of every address what confirms it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.fetching import explained, library
from mtk.files import replace_file
from mtk.folders import new_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Report = Callable[[str, float], None]

# Converted from the JAX checkpoint by a third party; at this commit with safetensors.
BASE_REPO = "DKYoon/mt5-xl-lm-adapt"
BASE_COMMIT = "928510c9ef66c075e1cdfebe82a66a2ff3b9bdde"
_BASE_FILES = ("*.json", "*.safetensors", "spiece.model")
# XL-WiC's own repository is a script, which datasets 4 and later do not run, and the
# branch of Parquet files that the Hub made of it names no configurations.
_XLWIC = "hf://datasets/pasinit/xlwic@refs/convert/parquet/{config}/{split}/*.parquet"
_XLWIC_PAIRS = {"de": "xlwic_de_de", "ko": "xlwic_en_ko"}
# Only what is read is kept: a Wikipedia page of TyDi QA has a lot besides.
_KEPT = {
    "tydiqa": ("language", "question_text", "document_plaintext", "annotations"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where ``datasets`` finds the rows of one file.

    Attributes:
        repo: a repository on the Hub, or the format of ``files``.
        config: of the repository; None if it has only one.
        split: of the configuration.
        files: a pattern of files that are read instead.
    """

    repo: str
    config: str | None = None
    split: str
    files: str | None = None


def address(folder: str, file: str) -> Address:
    """Where one file of one data set is.

    >>> address("xquad.ar", "all")
    Address(repo='google/xquad', config='xquad.ar', split='validation', files=None)
    """
    name, _, part = folder.partition(".")
    if name == "xlwic":
        files = _XLWIC.format(config=_XLWIC_PAIRS[part], split=file)
        return Address(repo="parquet", split=file, files=files)
    repo, config = {
        "squad": ("rajpurkar/squad", None),
        "xquad": ("google/xquad", f"xquad.{part}"),
        "xnli": ("facebook/xnli", part),
        "wiki_lingua": ("esdurmus/wiki_lingua", part),
        "wic": ("aps/super_glue", "wic"),
        "tydiqa": ("google-research-datasets/tydiqa", "primary_task"),
    }[name]
    split = "validation" if name == "xquad" else file
    return Address(repo=repo, config=config, split=split)


def fetch(root: Path, name: str, report: Report) -> None:
    """Download one file of one data set; it appears whole."""
    folder, _, file = name.partition("/")
    where = address(folder, file)
    target = root / "data" / folder / f"{file}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    report(f"downloading {name} from {where.files or where.repo}", 0.0)
    with explained(where.files or where.repo, f"Put its rows into {target} by hand"):
        replace_file(target, lines(load(where), _KEPT.get(folder)))
    report(f"{name} is there", 1.0)


def load(where: Address) -> Any:
    """The rows at an address, as ``datasets`` has them."""
    datasets = _library("datasets")
    if where.files is None:
        return datasets.load_dataset(where.repo, where.config, split=where.split)
    files = {where.split: where.files}
    return datasets.load_dataset(where.repo, data_files=files, split=where.split)


def lines(rows: Any, kept: tuple[str, ...] | None) -> Iterator[bytes]:
    """Rows as lines of JSON, all of their fields or some."""
    for row in rows:
        chosen = row if kept is None else {key: row[key] for key in kept}
        yield json.dumps(chosen, ensure_ascii=False).encode() + b"\n"


def model(folder: Path, report: Report) -> None:
    """Download the base into a folder that appears whole."""
    hub = _library("huggingface_hub")
    if folder.exists():
        raise UsageError(f"{folder} is there, but incomplete; move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    report(f"downloading {BASE_REPO}, 15 GB", 0.0)
    # The Hub's errors are OSErrors, which the folder would take for its own.
    with (
        new_folder(folder) as work,
        explained(BASE_REPO, f"Put the model into {folder} by hand"),
    ):
        hub.snapshot_download(
            BASE_REPO, revision=BASE_COMMIT, local_dir=work, allow_patterns=_BASE_FILES
        )
        shutil.rmtree(work / ".cache", ignore_errors=True)
    report("the base is there", 1.0)


def _library(name: str) -> Any:
    return library(name, "mtk-tasks-crosslingual[download]")
