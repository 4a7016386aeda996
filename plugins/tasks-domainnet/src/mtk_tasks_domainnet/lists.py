"""DomainNet's lists, and the split that the reference protocol makes of them.

``{domain}_train.txt`` and ``{domain}_test.txt`` hold one line per image, ``domain/class/file
index``. Two passes, each with one generator seeded by 42, shuffle the domains' lists in
alphabetical order: the train lists, whose first 20 % are validation, and the test lists,
which keep all their lines. What a shuffle draws depends on the length of the list only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mtk_tasks_domainnet.cells import Grid

SEED = 42
VALIDATION_SHARE = 0.2
PARTS = ("train", "test")
# Numbers of images: lines of one list are below this, so that ids never collide.
_LIST = 1_000_000


@dataclass(frozen=True, slots=True)
class Image:
    """One line of a list.

    Args:
        path: relative to the root.
        name: its class, which is its folder.
        number: unique over all lists.
    """

    path: str
    name: str
    number: int


def file_of(root: Path, domain: str, part: str) -> Path:
    """Where a list lies."""
    return root / f"{domain}_{part}.txt"


def count(root: Path, domain: str, part: str) -> int | None:
    """How many lines a list has; None where there is none."""
    file = file_of(root, domain, part)
    if not file.is_file():
        return None
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def split(root: Path, grid: Grid) -> Mapping[tuple[str, str], Sequence[Image]]:
    """(domain, split) -> images, in the order of the shuffled lists."""
    stamps = tuple(
        (file.stat().st_size, file.stat().st_mtime_ns)
        for domain in grid.domains
        for part in PARTS
        if (file := file_of(root, domain, part)).is_file()
    )
    return _split(root, grid.domains, stamps)


@lru_cache(maxsize=2)
def _split(
    root: Path, domains: tuple[str, ...], _stamps: tuple[tuple[int, int], ...]
) -> Mapping[tuple[str, str], Sequence[Image]]:
    found: dict[tuple[str, str], Sequence[Image]] = {}
    for place, part in enumerate(PARTS):
        generator = random.Random(SEED)
        for number, domain in enumerate(sorted(domains)):
            first = (2 * number + place) * _LIST
            images = read(file_of(root, domain, part), domain, first)
            generator.shuffle(images)
            if part == "test":
                found[domain, "test"] = images
                continue
            cut = int(len(images) * VALIDATION_SHARE)
            found[domain, "validation"], found[domain, "train"] = (
                images[:cut],
                images[cut:],
            )
    return found


def read(file: Path, domain: str, first: int = 0) -> list[Image]:
    """The lines of a list, in order.

    Raises:
        UsageError: it is missing, or a line is not as it should be.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the list {file} could not be read: {error}") from error
    found = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        parts = path.split("/")
        good = len(parts) == 3 and parts[0] == domain and label.isdecimal()
        if not good or {"", ".", ".."} & set(parts):
            raise UsageError(
                f"{file}, line {number + 1}: {line[:60]!r} is not "
                f"'{domain}/CLASS/FILE INDEX'"
            )
        found.append(Image(path, parts[1], first + number))
    return found


def of_cell(root: Path, grid: Grid, cell: str, part: str) -> list[Image]:
    """The images of one cell and split."""
    domain, group = grid.parse(cell)
    wanted = set(grid.groups[group])
    return [image for image in split(root, grid)[domain, part] if image.name in wanted]


def check_classes(root: Path, grid: Grid) -> None:
    """Refuse lists that do not speak of the grid's classes, all of them and no others."""
    listed = {image.name for images in split(root, grid).values() for image in images}
    grouped = set(grid.classes)
    for odd, where in (
        (grouped - listed, "is in no list"),
        (listed - grouped, "is in no group"),
    ):
        if odd:
            more = f" (nor {len(odd) - 1} others)" if len(odd) > 1 else ""
            raise UsageError(f"the class {min(odd)!r} {where}{more}")
