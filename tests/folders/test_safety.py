"""Folders appear complete or not at all: killed, out of space, in a race, in odd places.

Every case is a real command line in a fork of one warm process (``safety_child.py``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file
from safety_child import Child
from safety_folders import MERGE, check_result, contents, remains, state, write_model

from mtk.errors import CheckpointError
from mtk.folders import check_manifest, stale

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def test_killed_at_every_step_nothing_looks_complete(child, place: Path) -> None:
    out, left = place / "out", []
    for step in range(1, 500):
        outcome = child.mtk(*MERGE, "-o", "out", cwd=place, kill=step)
        if outcome.code == 0:
            break
        assert outcome.code == -9, outcome
        if out.exists():  # killed after the rename: then it must be complete
            check_result(out)
            shutil.rmtree(out)
        for partial in stale(out):
            with pytest.raises(CheckpointError, match="interrupted"):
                check_manifest(partial)
            left.append((partial, step))
            partial.rename(place / f"kept{partial.name}")
        assert remains(place) == sorted(f"kept{p.name}" for p, _ in left)
    assert step > 30
    assert len(left) > 25
    check_result(out)
    for partial, _ in (left[0], left[len(left) // 2], left[-1]):
        (place / f"kept{partial.name}").rename(partial)
        for command in (
            ("inspect", partial.name),
            (
                "merge",
                "-m",
                "average",
                "--expert",
                partial.name,
                "--expert",
                "e0",
                "-o",
                "o2",
            ),
        ):
            assert (
                "interrupted merge left behind"
                in child.mtk(*command, cwd=place).refused()
            )
        assert (
            "interrupted merge left behind"
            in child.mtk("inspect", ".", cwd=partial).refused()
        )
    shutil.rmtree(out)
    outcome = child.mtk(*MERGE, "-o", "out", cwd=place)
    assert outcome.code == 0
    assert len(stale(out)) == 3
    assert sum("out.partial-" in line for line in outcome.stderr.splitlines()) == 1
    check_result(out)


def test_killed_while_replacing_there_is_always_a_complete_folder(
    child, place: Path
) -> None:
    out = place / "out"
    steps = child.mtk(*MERGE, "-o", "out", cwd=place, count=True).steps
    old = contents(out)
    swapped = 0
    for step in range(max(1, steps - 30), 500):
        outcome = child.mtk(
            *MERGE, "--donor", "e0", "-o", "out", "--overwrite", cwd=place, kill=step
        )
        assert check_manifest(out, contents=True) is not None
        if outcome.code == 0:
            break
        assert outcome.code == -9, outcome
        if contents(out) != old:  # the swap was done; what is left is the old folder
            swapped += 1
            shutil.rmtree(out)
            assert child.mtk(*MERGE, "-o", "out", cwd=place).code == 0
            old = contents(out)
        for partial in stale(out):
            with pytest.raises(CheckpointError, match="interrupted"):
                check_manifest(partial)
            shutil.rmtree(partial)
    assert swapped > 1
    assert contents(out) != old
    assert remains(place) == ["out"]


@pytest.mark.parametrize("size", [100, 600])
@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_a_full_disk_leaves_nothing(child, place: Path, size: int, out: str) -> None:
    outcome = child.mtk(*MERGE, "-o", out, cwd=place, file_size=size)
    assert out in outcome.refused()
    assert remains(place) == []


def test_a_full_disk_keeps_the_old_folder(child, place: Path) -> None:
    assert child.mtk(*MERGE, "-o", "out", cwd=place).code == 0
    old = contents(place / "out")
    child.mtk(*MERGE, "-o", "out", "--overwrite", cwd=place, file_size=600).refused()
    assert contents(place / "out") == old
    assert remains(place) == ["out"]


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_too_little_space_is_said_before_anything_is_written(
    child, place: Path, out: str
) -> None:
    """Sparse files promise more than the disk has; no file above 64 MiB can be written."""
    size, free = 1 << 34, shutil.disk_usage(place).free
    if free > 1 << 42:
        pytest.skip("the disk is larger than what a test can promise")
    (place / "huge").mkdir()
    files = {
        f"w{number}": f"{number}.safetensors" for number in range(free // size + 1)
    }
    index = place / "huge" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    for name, file in files.items():
        entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
        text = json.dumps({name: entry}).encode()
        with (place / "huge" / file).open("wb") as sparse:
            sparse.write(len(text).to_bytes(8, "little") + text)
            sparse.truncate(8 + len(text) + size)
    experts = ("--expert", "huge", "--expert", "huge")
    outcome = child.mtk(
        "merge", "-m", "average", *experts, "-o", out, cwd=place, address_space=-1
    )
    shutil.rmtree(place / "huge")
    assert "GB free" in outcome.refused()
    assert remains(place) == []


def test_of_two_runs_into_one_output_exactly_one_wins(child, place: Path) -> None:
    other = Child()
    try:
        for round_ in range(3):
            out = f"out{round_}"
            for runner in (child, other):
                runner.start(*MERGE, "-o", out, cwd=place, wait_for=str(place / "go"))
            (place / "go").touch()
            one, two = child.finish(), other.finish()
            loser = one if one.code else two
            assert sorted((one.code, two.code)) == [0, 2], (one, two)
            assert out in loser.refused()
            check_result(place / out)
            (place / "go").unlink()
    finally:
        other.close()
    assert remains(place) == ["out0", "out1", "out2"]


def test_a_run_that_began_later_and_ended_first_is_not_replaced(
    child, place: Path
) -> None:
    write_model(place / "first", 7)
    change = f"mv {place / 'first'} {place / 'out'}"
    for step in (1, 20):
        outcome = child.mtk(*MERGE, "-o", "out", cwd=place, change=[step, change])
        assert "out" in outcome.refused()
        assert load_file(place / "out" / "model.safetensors").keys() == state(7).keys()
        assert remains(place) == ["out"]
        (place / "out").rename(place / "first")


CHANGES = {
    "written over": "printf x | dd of=e1/model.safetensors bs=1 seek=400 conv=notrunc status=none",
    "replaced": "cp new e1/next && mv e1/next e1/model.safetensors",
    "shortened": "truncate -s 300 e1/model.safetensors",
    "grown": "printf x >> e1/model.safetensors",
    "removed": "rm e1/model.safetensors",
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_an_input_that_changes_after_its_header_was_read(
    child, tmp_path: Path, what: str, out: str
) -> None:
    outcome = changed(child, tmp_path, CHANGES[what], 1, out)
    assert "e1" in outcome.refused()
    assert not (tmp_path / out).exists()
    assert remains(tmp_path) == ["new"]


@pytest.mark.parametrize("what", CHANGES)
def test_hashes_are_those_of_what_was_merged(child, tmp_path: Path, what: str) -> None:
    """A change at any later step is noticed, or comes too late to matter."""
    noticed = 0
    for step in range(2, 60, 6):
        folder = tmp_path / str(step)
        folder.mkdir()
        outcome = changed(child, folder, CHANGES[what], step, "out")
        if outcome.code == 0:
            check_result(folder / "out")
            manifest = check_manifest(folder / "out")
            (entry,) = (i for i in manifest["inputs"] if i["name"] == "e1")
            assert entry["files"]["model.safetensors"]["sha256"] == sha256_of(
                state(2), folder
            )
        else:
            noticed += 1
            assert "e1" in outcome.refused()
            assert remains(folder) == ["new"]
    assert noticed > 1


def changed(child, folder: Path, command: str, step: int, out: str):
    for seed, name in enumerate(("base", "e0", "e1")):
        write_model(folder / name, seed)
    save_file({n: t + 1 for n, t in state(2).items()}, folder / "new")
    return child.mtk(*MERGE, "-o", out, cwd=folder, change=[step, command])


def sha256_of(tensors: dict[str, torch.Tensor], folder: Path) -> str:
    save_file(tensors, folder / "again")
    return hashlib.sha256((folder / "again").read_bytes()).hexdigest()
