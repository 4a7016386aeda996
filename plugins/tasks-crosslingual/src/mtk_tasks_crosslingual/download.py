"""The base and the data sets from the Hub, on request only.

No download could be run where this was written. ``docs/explanation/crosslingual-mt5.md``
says of every address what confirms it.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError, first_line
from mtk.files import replace_file
from mtk.folders import new_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Report = Callable[[str, float], None]

_MINUTE, _PATIENCE = 60.0, 10.0  # seconds
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
    with _explained(where.files or where.repo, f"Put its rows into {target} by hand"):
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
        _explained(BASE_REPO, f"Put the model into {folder} by hand"),
    ):
        hub.snapshot_download(
            BASE_REPO, revision=BASE_COMMIT, local_dir=work, allow_patterns=_BASE_FILES
        )
        shutil.rmtree(work / ".cache", ignore_errors=True)
    report("the base is there", 1.0)


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"--download needs {name.partition('.')[0]}, which is not installed\n"
            'pip install "mtk-tasks-crosslingual[download]"'
        ) from error


class _Host:
    """The Hub's address, asked once in a while whether anybody answers there.

    Its clients try every file several times, and say so in lines of their own.
    """

    def __init__(self) -> None:
        self._silent_at = -_MINUTE

    def check(self, instead: str) -> None:
        """Refuse to begin where nobody answers, and for a minute after that."""
        constants = _library("huggingface_hub.constants")
        if constants.HF_HUB_OFFLINE:
            return  # the clients look into their caches, and try nothing else
        address = constants.ENDPOINT
        if time.monotonic() - self._silent_at < _MINUTE:
            raise UsageError("not tried, for the same reason")
        try:
            session = _library("huggingface_hub.utils").get_session()
            session.head(address, timeout=_PATIENCE)
        except Exception as error:  # whatever the Hub's client raises
            self._silent_at = time.monotonic()
            raise UsageError(
                f"{address} could not be reached: {first_line(error)}\n"
                f"Nothing was lost, and no other file is tried now. {instead}"
            ) from error


_HOST = _Host()


@contextmanager
def _explained(what: str, instead: str) -> Iterator[None]:
    _HOST.check(instead)
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # whatever the Hub's client raises
        raise UsageError(
            f"{what} could not be had from the Hub: {first_line(error)}\n{instead}"
        ) from error
