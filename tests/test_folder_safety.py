"""Folders appear complete or not at all: killed, out of space, in a race, in odd places.

Every case is a real command line in a fork of one warm process (``safety_child.py``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtk.errors import CheckpointError
from mtk.folders import check_manifest, stale

_spec = importlib.util.spec_from_file_location(
    "safety_child", Path(__file__).with_name("safety_child.py")
)
safety_child = importlib.util.module_from_spec(_spec)
sys.modules["safety_child"] = safety_child
_spec.loader.exec_module(safety_child)

MERGE = (
    "merge",
    "-m",
    "task_arithmetic",
    "--base",
    "base",
    "--expert",
    "e0",
    "--expert",
    "e1",
)
MERGE += ("-p", "scale=0.5", "--workers", "1", "--shard-size", "500B")  # fmt: skip


@pytest.fixture(scope="module")
def child():
    process = safety_child.Child()
    yield process
    process.close()


def state(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"lm_head.weight": (12, 8), "model.layers.0.mlp.up_proj.weight": (8, 8)}
    return {n: torch.randn(s, generator=draw) for n, s in shapes.items()}


def write_model(folder: Path, seed: int) -> Path:
    folder.mkdir()
    save_file(state(seed), folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with three models; their bytes must be the same at the end."""
    for seed, name in enumerate(("base", "e0", "e1")):
        write_model(tmp_path / name, seed)
    before = contents(tmp_path / "base", tmp_path / "e0", tmp_path / "e1")
    yield tmp_path
    assert contents(tmp_path / "base", tmp_path / "e0", tmp_path / "e1") == before


def contents(*folders: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def check_result(folder: Path) -> None:
    """A complete merge with the right numbers."""
    assert check_manifest(folder, contents=True) is not None
    merged = {}
    for file in folder.glob("*.safetensors"):
        merged |= load_file(file)
    base, one, two = state(0), state(1), state(2)
    for name, tensor in base.items():
        wanted = tensor + 0.5 * ((one[name] - tensor) + (two[name] - tensor))
        torch.testing.assert_close(merged[name], wanted)


def remains(place: Path) -> list[str]:
    return sorted(
        path.name for path in place.iterdir() if path.name not in ("base", "e0", "e1")
    )


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
    other = safety_child.Child()
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
