"""Reading, writing, and merging from file to file."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtk
from mtk.checkpoint import SafetensorsCheckpoint, StateDict, describe
from mtk.errors import CheckpointError, MethodError, UsageError
from mtk.files import check_target, replace_file
from mtk.results import Merged, PerTask, Routed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "shape", "role", "layer"),
    [
        ("h.0.attn.q.weight", (4, 4), "linear", "h.0.attn.q.weight"),
        ("h.0.attn.in_proj_weight", (12, 4), "linear", "h.0.attn.in_proj_weight"),
        ("h.0.attn.in_proj_bias", (12,), "bias", "h.0.attn.in_proj_weight"),
        ("fc.bias", (4,), "bias", "fc.weight"),
        ("norm1.weight", (4,), "norm", "norm1.weight"),
        ("ln_1.bias", (4,), "norm", "ln_1.bias"),
        ("model.embed_tokens.weight", (9, 4), "embedding", "model.embed_tokens.weight"),
        ("positional_embedding", (9, 4), "embedding", "positional_embedding"),
        ("conv1.weight", (4, 1, 2, 2), "conv", "conv1.weight"),
        ("visual.proj", (4, 4), "other", "visual.proj"),
        ("logit_scale", (), "other", "logit_scale"),
    ],
)
def test_roles_from_names_and_shapes(name, shape, role, layer) -> None:
    info = describe(name, shape, torch.float32)
    assert (info.role, info.layer) == (role, layer)
    assert describe(name, shape, torch.int64).role == "buffer"


def keep_first(*, experts):
    return experts[0].clone()


FIRST = mtk.Method(name="first", target=keep_first, summary="")


def test_only_a_linear_layer_has_a_bias_of_its_own() -> None:
    state = {
        "fc.weight": torch.zeros(2, 3),
        "fc.bias": torch.zeros(2),
        "conv.weight": torch.zeros(2, 1, 3, 3),
        "conv.bias": torch.zeros(2),
        "lonely.bias": torch.zeros(2),
    }
    opened = StateDict(state, "m")
    assert opened.info("fc.bias").layer == "fc.weight"
    for name in ("conv.bias", "lonely.bias"):
        assert (opened.info(name).role, opened.info(name).layer) == ("other", name)


class Files:
    """Stands in for an adapter that opens single files."""

    def matches(self, path: Path) -> bool:
        return path.suffix == ".safetensors"

    def open(self, path: Path, *, view: str = "tensors", base: object = None):
        return SafetensorsCheckpoint([path], str(path))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MTK_PLUGINS", "")
    from mtk.loading import Plugin, Provided

    loaded = mtk.load()
    here = Plugin(
        distribution="t", version="0", entry_point="", module="", seconds=0, hooks=(),
        imported_torch=False,
    )  # fmt: skip
    loaded.adapters.append(
        Provided(mtk.Adapter(name="f", target=Files(), summary=""), here)
    )
    return loaded


MODEL = {
    "b.weight": torch.arange(6.0).view(2, 3).bfloat16(),
    "a": torch.tensor(3.5),
    "flag": torch.tensor([True, False, True]),
    "count": torch.tensor([7]),
    "none": torch.zeros(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(MODEL, path)
    return path


def test_file_to_file_keeps_every_dtype_and_the_usual_mode(
    file, registry, tmp_path
) -> None:
    out = tmp_path / "out.safetensors"
    before = file.read_bytes()
    merged = mtk.merge(FIRST, experts=[file], output=out, registry=registry)
    assert merged.path == out
    assert not merged.tensors
    got = load_file(out)
    assert set(got) == set(MODEL)
    for name, tensor in MODEL.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)
    assert file.read_bytes() == before
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~umask
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.safetensors",
        "out.safetensors",
    ]


def test_two_runs_give_the_same_bytes(file, registry, tmp_path) -> None:
    outs = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for out in outs:
        mtk.merge(FIRST, experts=[file], output=out, registry=registry)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_failed_merge_leaves_nothing(file, registry, tmp_path) -> None:
    def fail(*, experts):
        raise RuntimeError("no")

    method = mtk.Method(name="fails", target=fail, summary="")
    with pytest.raises(MethodError):
        mtk.merge(
            method, experts=[file], output=tmp_path / "o.safetensors", registry=registry
        )
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_bad_outputs_are_refused_before_anything_is_read(
    file, registry, tmp_path
) -> None:
    other = tmp_path / "exists.safetensors"
    other.write_bytes(b"mine")
    link = tmp_path / "link.safetensors"
    link.symlink_to(other)
    (tmp_path / "d.safetensors").mkdir()
    for out in (
        file,
        other,
        link,
        tmp_path / "d.safetensors",
        tmp_path / "no" / "o.safetensors",
    ):
        with pytest.raises(UsageError):
            mtk.merge(FIRST, experts=[file], output=out, registry=registry)
    with pytest.raises(UsageError, match=r"NAME\.safetensors"):
        mtk.merge(FIRST, experts=[file], output=tmp_path / "m.bin", registry=registry)
    with pytest.raises(UsageError, match="input"):
        mtk.merge(FIRST, experts=[file], output=file, overwrite=True, registry=registry)
    assert other.read_bytes() == b"mine"
    mtk.merge(FIRST, experts=[file], output=other, overwrite=True, registry=registry)
    assert "a" in load_file(other)


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    code = (
        "import os, sys, pathlib\nfrom mtk.files import replace_file\n"
        "def chunks():\n    yield b'new'\n    os.kill(os.getpid(), 9)\n"
        f"replace_file(pathlib.Path({str(path)!r}), chunks())"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert path.read_text() == "old"


def test_an_exception_while_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    def chunks():
        yield b"x"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "f", chunks())
    assert not list(tmp_path.iterdir())


def header(table: dict, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",
        header({"a": ENTRY}),
        header({"a": ENTRY}, b"12345678"),
        header({"a": {**ENTRY, "shape": [2]}}, b"1234"),
        header({"a": {**ENTRY, "dtype": "F8_E4M3", "shape": [4]}}, b"1234"),
        header({}),
        (1 << 62).to_bytes(8, "little") + b"{}",
        header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"1234",
        ),
        header(b"[" * 100_000),
    ],
)
def test_damaged_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors") as caught:
        SafetensorsCheckpoint([path], str(path))
    assert len(str(caught.value).splitlines()) <= 3


def test_missing_models_and_unknown_formats_are_refused(
    registry, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    for path, says in (
        (tmp_path / "absent", "no such"),
        (text, "no installed adapter"),
    ):
        with pytest.raises(CheckpointError, match=says):
            mtk.merge(FIRST, experts=[path], registry=registry)
    with pytest.raises(CheckpointError, match="no tensors"):
        StateDict({}, "expert 0")


def double(*, experts, base):
    return PerTask(experts[0] - base, [{"k": torch.tensor(2.0)} for _ in experts])


def decode(*, base, shared, code):
    return base + code["k"] * shared


def test_per_task_and_routed_results_survive_saving(
    tmp_path, monkeypatch, registry
) -> None:
    per_task = mtk.Method(
        name="double", target=double, decode=decode, output="per_task", summary="",
        needs=mtk.Needs(base=True),
    )  # fmt: skip

    def parts(*, experts, info):
        return Routed(experts[0], {"left": experts[0]} if info.role == "linear" else {})

    routed = mtk.Method(
        name="parts", target=parts, route=print, output="routed", scope="tensor", summary="",
        needs=mtk.Needs(info=True),
    )  # fmt: skip
    from mtk.loading import Provided

    plugin = registry.adapters[0].plugin
    registry.methods += [Provided(per_task, plugin), Provided(routed, plugin)]
    base = {"a.weight": torch.ones(2, 2).bfloat16(), "n": torch.tensor([1])}
    expert = {"a.weight": torch.full((2, 2), 3.0).bfloat16(), "n": torch.tensor([1])}
    for method in (per_task, routed):
        merged = mtk.merge(
            method, experts=[expert, expert], base=base, registry=registry
        )
        path = tmp_path / f"{method.name}.safetensors"
        merged.save(path)
        again = mtk.load_merged(path, registry=registry)
        assert isinstance(again, Merged)
        assert again.method == method
        for name in ("tensors", "base"):
            one, two = getattr(merged, name), getattr(again, name)
            assert set(one) == set(two)
            assert all(torch.equal(one[key], two[key]) for key in one)
        if method is per_task:
            assert torch.equal(
                again.task(1)["a.weight"], torch.full((2, 2), 5.0).bfloat16()
            )
            assert again.task(1)["a.weight"].dtype == torch.bfloat16
        else:
            assert torch.equal(
                again.routing["a.weight"]["left"], merged.routing["a.weight"]["left"]
            )
    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.ones(1)}, plain)
    with pytest.raises(CheckpointError, match="not written by mtk"):
        mtk.load_merged(plain)


def test_check_target_accepts_a_new_file(tmp_path: Path) -> None:
    check_target(tmp_path / "new.safetensors")
