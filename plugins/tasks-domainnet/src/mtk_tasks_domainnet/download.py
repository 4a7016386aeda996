"""Getting what is missing from the Hub: only ever called with ``--download``.

None of this could be run where it was written; addresses are those that the project's
notes on the protocol name, and every failure says what to do by hand.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError
from mtk.fetching import explained, library
from mtk.files import replace_file
from mtk.folders import new_folder
from mtk_tasks_domainnet import lists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mtk_tasks_domainnet.cells import Grid

    Report = Callable[[str, float], None]

LISTS_REPO = "yashkant/evalmerge"
IMAGES_REPO = "wltjr1007/DomainNet"
CIFAR_REPO = "uoft-cs/cifar100"
_TELL_EVERY = 1000
_BY_HAND = "mtk tracks prepare says where to put the files by hand"


def weights(repo: str, files: Sequence[str], folder: Path, report: Report) -> None:
    """Some files of a model, into a folder that appears whole."""
    hub = _library("huggingface_hub")
    if folder.exists():
        raise UsageError(f"{folder} is there, but incomplete; move it away")
    with new_folder(folder) as work, explained(repo, _BY_HAND):
        for number, file in enumerate(files):
            report(f"downloading {file} of {repo}", number / len(files))
            hub.hf_hub_download(repo, file, local_dir=work)
        _remove_cache(work)


def data(root: Path, grid: Grid, name: str, report: Report) -> None:
    """Lists, or the images of all domains that the lists name."""
    if name == "lists":
        domain_lists(root, grid, report)
    elif name.startswith("images/"):
        images(root, grid, report)
    else:
        raise UsageError(f"{name} cannot be downloaded; put it there by hand")


def domain_lists(root: Path, grid: Grid, report: Report) -> None:
    """The official lists, each whole or not at all."""
    hub = _library("huggingface_hub")
    for domain in grid.domains:
        for part in lists.PARTS:
            target = lists.file_of(root, domain, part)
            if target.is_file():
                continue
            report(f"downloading {target.name}", 0.0)
            with explained(LISTS_REPO, _BY_HAND):
                name = f"domainnet/{target.name}"
                found = hub.hf_hub_download(LISTS_REPO, name, repo_type="dataset")
            replace_file(target, [Path(found).read_bytes()])


def images(root: Path, grid: Grid, report: Report) -> None:
    """All images that the lists name and the root lacks, in one pass over the Hub's copy.

    They are told by their file names, so the copy must carry them.
    """
    wanted: dict[str, str] = {}
    for domain in grid.domains:
        for part in lists.PARTS:
            for image in lists.read(lists.file_of(root, domain, part), domain):
                name = PurePosixPath(image.path).name
                if wanted.setdefault(name, image.path) != image.path:
                    raise UsageError(
                        f"{name} is the name of two images, so they cannot be told apart\n"
                        "Unpack the official archives instead"
                    )
    datasets = _library("datasets")
    with explained(IMAGES_REPO, _BY_HAND):
        rows = (
            row
            for part in lists.PARTS
            for row in datasets.load_dataset(
                IMAGES_REPO, split=part, streaming=True
            ).cast_column("image", datasets.Image(decode=False))
        )
        put_images(root, wanted, rows, report)


def put_images(
    root: Path,
    wanted: dict[str, str],
    rows: Iterable[dict[str, Any]],
    report: Report,
) -> int:
    """Write the images of rows ``{"image": {"bytes", "path"}}``; returns how many."""
    written = 0
    for number, row in enumerate(rows):
        name = PurePosixPath(row["image"].get("path") or "").name
        if name not in wanted:
            raise UsageError(
                f"row {number} of {IMAGES_REPO} is called {name!r}, which no list names\n"
                "Unpack the official archives instead"
            )
        place = root / wanted[name]
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}.partial")
            partial.write_bytes(row["image"]["bytes"])
            partial.replace(place)
            written += 1
        if number % _TELL_EVERY == 0:
            report(f"{number:,} of {len(wanted):,} images", number / len(wanted))
    return written


def cifar(folder: Path, report: Report) -> None:
    """The test images of CIFAR-100 as one folder per class."""
    datasets = _library("datasets")
    report(f"downloading {CIFAR_REPO}", 0.0)
    with explained(CIFAR_REPO, _BY_HAND):
        rows = datasets.load_dataset(CIFAR_REPO, split="test")
        names = rows.features["fine_label"].names
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as work:
        for number, row in enumerate(rows):
            place = work / names[row["fine_label"]]
            place.mkdir(exist_ok=True)
            row["img"].save(place / f"{number:05}.png")


def _library(name: str) -> Any:
    return library(name, "mtk-tasks-domainnet[download]")


def _remove_cache(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder / ".cache", ignore_errors=True)
