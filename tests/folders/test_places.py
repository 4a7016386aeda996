"""Where a folder may be written, whom it may replace, and with what modes.

Every case is a real command line in a fork of one warm process (``safety_child.py``).
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from safety_folders import MERGE, check_result, contents, remains, write_model

from mtk.folders import stale

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_modes_are_the_user_s(child, place: Path, umask: int, out: str) -> None:
    assert child.mtk(*MERGE, "-o", out, cwd=place, umask=umask).code == 0
    for path in (place / out, *(place / out).rglob("*")):
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~umask, path


def test_nobody_else_reads_a_folder_that_is_not_done(child, place: Path) -> None:
    child.mtk(*MERGE, "-o", "out", cwd=place, kill=6)
    (partial,) = stale(place / "out")
    assert stat.S_IMODE(partial.stat().st_mode) == 0o700


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_a_read_only_parent(child, place: Path, out: str) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o555)
    outcome = child.mtk(*MERGE, "-o", f"closed/{out}", cwd=place, plain=True)
    assert f"closed/{out}" in outcome.refused()
    assert list(closed.iterdir()) == []


ODD = {
    "the same": "e0",
    "with dots": "base/../e0",
    "inside": "e0/out",
    "deep inside": "e0/sub/../out",
    "parent": ".",
    "parent, named": "../{name}",
    "by a link": "link/out",
    "a link": "link",
    "above": "..",
    "a file in an input": "e0/out.safetensors",
    "the weights of an input": "e0/model.safetensors",
    "the weights, by a link": "link/model.safetensors",
    "a file": "file",
    "a dangling link": "dangling",
    "a link to a folder": "linked-folder",
    "a pipe": "pipe",
    "a pipe for weights": "pipe.safetensors",
    "a link for weights": "link.safetensors",
    "no parent": "gone/out",
    "a file as the parent": "file/out",
    "partial": "out.partial-01234567",
    "the root": "/",
    "a pickle": "out.bin",
    "not ours": "theirs",
    "not ours, with a manifest": "site",
    "not only ours": "mixed",
    "with a link in it": "mixed-link",
}  # fmt: skip


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["new", "overwrite"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_place_is_refused_and_left_alone(
    child, place: Path, name: str, overwrite
) -> None:
    (place / "link").symlink_to("e0")
    (place / "dangling").symlink_to("gone")
    (place / "real-folder").mkdir()
    (place / "linked-folder").symlink_to("real-folder")
    (place / "link.safetensors").symlink_to("e0/model.safetensors")
    (place / "file").write_text("mine")
    os.mkfifo(place / "pipe")
    os.mkfifo(place / "pipe.safetensors")
    write_model(place / "theirs", 5)
    for folder in ("site", "mixed", "mixed-link"):
        assert child.mtk(*MERGE, "-o", folder, cwd=place).code == 0
    (place / "site" / "manifest.json").write_text('{"name": "My site", "icons": []}')
    (place / "mixed" / "evaluation.txt").write_text("a week of work")
    (place / "mixed-link" / "data").symlink_to("../real-folder")
    (place / "kept").mkdir()
    before, names = contents(place), sorted(place.rglob("*"))
    output = ODD[name].format(name=place.name)
    outcome = child.mtk(*MERGE, "-o", output, *overwrite, cwd=place)
    outcome.refused()
    assert contents(place) == before
    assert sorted(place.rglob("*")) == names


def test_only_what_mtk_wrote_is_replaced(child, place: Path) -> None:
    (place / "out").mkdir()  # empty: nothing is lost
    for _ in range(2):
        assert "exists" in child.mtk(*MERGE, "-o", "out", cwd=place).refused()
        assert child.mtk(*MERGE, "-o", "out", "--overwrite", cwd=place).code == 0
        check_result(place / "out")
        assert remains(place) == ["out"]
