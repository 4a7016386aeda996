"""Pickled checkpoints: plain ones open, value by value; everything else is refused."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING

import pytest
import torch

from mtk import pickles
from mtk.errors import CheckpointError
from mtk.pickles import INDEX, WEIGHTS, is_pickle, open_pickle, refusal

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = torch.arange(24.0).view(4, 6)


def saved(path: Path, value: object, **how: object) -> Path:
    torch.save(value, path, **how)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_pickle(path, "label")
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    assert str(path) in text
    return text


@pytest.mark.parametrize(
    "state",
    [
        {"a.weight": WEIGHT, "b": WEIGHT[0].clone()},
        torch.nn.Linear(3, 4).state_dict(),
        {"a": torch.nn.Parameter(WEIGHT.clone())},
        {"tied": WEIGHT, "twin": WEIGHT},
        {"a": WEIGHT.bfloat16(), "b": WEIGHT.half(), "c": WEIGHT.double()},
        {"a": torch.arange(3), "b": torch.ones(2, dtype=torch.bool)},
        {"a": WEIGHT.T, "b": WEIGHT[1:3, ::2]},
        {"a": torch.zeros(0, 3)},
        {"a": torch.tensor(2.0)},
    ],
)
def test_plain_tensors_come_out_as_they_went_in(tmp_path: Path, state) -> None:
    path = saved(tmp_path / "model.pt", state)
    opened = open_pickle(path, "m")
    assert opened.names() == sorted(state)
    assert opened.files == (path,)
    for name, tensor in state.items():
        assert opened.info(name).shape == tuple(tensor.shape)
        assert getattr(torch, opened.info(name).dtype) == tensor.dtype
        assert torch.equal(opened.read(name), tensor)
        assert opened.read(name).is_contiguous()
        assert not opened.read(name).requires_grad
        end = tensor.numel()
        assert torch.equal(
            opened.part(name, end // 2, end), tensor.flatten()[end // 2 :]
        )


def test_a_state_dict_inside_a_training_checkpoint(tmp_path: Path) -> None:
    beside = {
        "epoch": 3,
        "optimizer": {"lr": 0.1, "size": torch.Size([2]), "moments": [WEIGHT]},
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "name": "run",
        "more": OrderedDict(a=None),
    }
    path = saved(tmp_path / "last.ckpt", {"state_dict": {"a": WEIGHT}, **beside})
    assert open_pickle(path, "m").names() == ["a"]


def test_a_folder_with_one_file_and_a_folder_with_an_index(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    saved(tmp_path / "one" / WEIGHTS, {"a": WEIGHT})
    several = tmp_path / "several"
    several.mkdir()
    saved(several / "part-1.bin", {"a": WEIGHT})
    saved(several / "part-2.bin", {"b": WEIGHT + 1})
    table = {"weight_map": {"a": "part-1.bin", "b": "part-2.bin"}}
    (several / INDEX).write_text(json.dumps(table))
    assert is_pickle(tmp_path / "one")
    assert is_pickle(several)
    assert is_pickle(several / "part-1.bin")
    assert not is_pickle(several / INDEX)
    assert open_pickle(tmp_path / "one", "m").names() == ["a"]
    opened = open_pickle(several, "m")
    assert torch.equal(opened.read("b"), WEIGHT + 1)
    (several / "model.safetensors").write_bytes(b"")
    assert not is_pickle(several)


def test_a_folder_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    saved(tmp_path / "blobs" / "f00", {"a": WEIGHT})
    snapshot = tmp_path / "snapshots" / "rev"
    snapshot.mkdir(parents=True)
    (snapshot / WEIGHTS).symlink_to("../../blobs/f00")
    assert open_pickle(snapshot, "m").names() == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "../up.bin",
        "/tmp/x.bin",
        "sub/x.bin",
        "gone.bin",
        "x.safetensors",
        3,
        "link.bin",
    ],
)
def test_an_index_names_only_pickled_files_beside_it(tmp_path: Path, name) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    saved(tmp_path / "up.bin", {"a": WEIGHT})
    (folder / "link.bin").symlink_to("../up.bin")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert repr(name) in refused(folder)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{", "[]", '{"weight_map": 3}', "\xff"]
)
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    assert INDEX in refused(tmp_path)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (exec, (f"open({str(self.canary)!r}, 'w')",))


@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: {"a": p}, lambda p: {"a": WEIGHT, "b": [p]}]
)
@pytest.mark.parametrize("legacy", [True, False])
def test_a_payload_never_runs(tmp_path: Path, wrap, legacy: bool) -> None:
    path, canary = tmp_path / "m.pt", tmp_path / "canary"
    saved(path, wrap(Payload(canary)), _use_new_zipfile_serialization=not legacy)
    refused(path)
    path.write_bytes(pickle.dumps(wrap(Payload(canary))))
    refused(path)
    assert not canary.exists()


def test_a_file_called_safetensors_is_never_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", {"a": WEIGHT})
    assert not is_pickle(path)
    assert "no pickled file" in refused(path)


def sparse() -> torch.Tensor:
    return WEIGHT.to_sparse()


REFUSED = {
    "expanded": ({"a": torch.ones(1).expand(10**9)}, "'a' is an expanded view"),
    "stride 0": ({"a": torch.ones(99).as_strided((3, 3), (1, 0))}, "'a' is an expanded view"),
    "overlapping": ({"a": torch.ones(9).as_strided((5, 5), (1, 1))}, "'a' is an expanded view"),
    "repeated": ({f"a{i}": WEIGHT for i in range(99)}, "its tensors have"),
    "sparse": ({"a": sparse()}, "'a' its pickle asks for torch._utils._rebuild_sparse_tensor"),
    "complex": ({"a": WEIGHT.to(torch.complex64)}, "'a' its pickle asks for torch.Complex"),
    "float8": ({"a": WEIGHT.to(torch.float8_e4m3fn)}, "'a' its pickle asks for"),
    "meta": ({"a": torch.ones(2, device="meta")}, "'a' its pickle asks for"),
    "model": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    "list": ([WEIGHT], "holds a list"),
    "tensor": (WEIGHT, "holds a Tensor"),
    "text": ({"a": WEIGHT, "note": "hello"}, "'note' is a str"),
    "nested": ({"model": {"a": WEIGHT}}, "'model' is a dict"),
    "number": ({3: WEIGHT}, "'3' is no name"),
    "bytes": ({"a": bytearray(8)}, "builtin"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_anything_but_dense_tensors_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    value, message = REFUSED[name]
    assert message in refused(saved(tmp_path / "m.pt", value))


def test_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensors"):
        open_pickle(saved(tmp_path / "m.pt", {}), "label")


def archive(path: Path, program: bytes, *, data: bytes = b"x" * 64, **how) -> Path:
    with zipfile.ZipFile(path, "w", **how) as out:
        out.writestr("m/data.pkl", program)
        out.writestr("m/data/0", data)
        out.writestr("m/version", b"3\n")
        out.writestr("m/byteorder", b"little")
    return path


def program(
    *,
    count: int = 16,
    shape: str = "K\x10\x85",
    start: bytes = b"K\x00",
    key: str = "0",
) -> bytes:
    """The pickle of ``{"a": tensor}`` whose storage says it has ``count`` numbers."""

    def word(text: str) -> bytes:
        return b"X" + len(text).to_bytes(4, "little") + text.encode()

    def number(value: int) -> bytes:
        raw = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw

    storage = (
        b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word(key) + word("cpu")
    )
    storage += number(count) + b"tQ"
    size = shape.encode("latin-1")
    return (
        b"\x80\x02}" + word("a") + b"ctorch._utils\n_rebuild_tensor_v2\n((" .removesuffix(b"(")
        + storage + start + size + b"K\x01\x85" + b"\x89" + b"ccollections\nOrderedDict\n)R" + b"tRs."
    )  # fmt: skip


def big(size: int) -> str:
    return "\x8a\x09" + size.to_bytes(9, "little").decode("latin-1") + "\x85"


def test_the_hand_made_archive_is_a_good_one(tmp_path: Path) -> None:
    data = WEIGHT.flatten()[:16].numpy().tobytes()
    opened = open_pickle(archive(tmp_path / "m.pt", program(), data=data), "m")
    assert torch.equal(opened.read("a"), WEIGHT.flatten()[:16])


@pytest.mark.parametrize(
    "crafted",
    [
        program(count=1 << 40),
        program(count=1 << 40, shape=big(1 << 40)),
        program(count=-(1 << 40)),
        program(count=0, shape=big(1 << 33)),
        program(shape=big(1 << 33)),
        program(start=b"\x8a\x05\x00\x00\x00\x00\x01"),
        program(start=b"\x8a\x01\xff"),
        program(key="../0"),
        program(key="gone"),
        b"",
        b"\x80\x02.",
        b"\x80\x02" + b"]" * 100_000 + b".",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02N" + b"\x85" * 300_000 + b".",
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
        b"\x80\x02ctorch\nTensor\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
    ],
)
def test_hand_made_pickles_cost_no_memory(tmp_path: Path, crafted: bytes) -> None:
    path = archive(tmp_path / "m.pt", crafted)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_longer_storage_than_its_record(tmp_path: Path) -> None:
    """Numbers beyond the record may be other bytes of the file, never beyond the file."""
    path = archive(tmp_path / "m.pt", program(count=1 << 20, shape=big(1 << 20)))
    refused(path)


def test_compressed_and_repeated_records(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    archive(path, program(), data=b"\0" * 64, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(path)
    archive(path, program())
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(path, "a") as out,
    ):
        out.writestr("m/data/0", b"y" * 64)
    assert "not an archive" in refused(path)


def test_too_long_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m.pt", {"a": WEIGHT})
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 10)
    assert "longer than" in refused(path)
    monkeypatch.setattr(pickles, "MOST_PICKLE_BYTES", 10)
    assert "its pickle has" in refused(path)


def test_a_pipe_a_folder_and_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("pipe.pt", "folder.pt", "gone.pt"):
        assert not is_pickle(tmp_path / name)
        refused(tmp_path / name)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"a": WEIGHT})
    opened = open_pickle(path, "m")
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed while"):
        opened.read("a")


def test_an_old_torch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "m.pt", {"a": WEIGHT})
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"torch 2\.9\.1.*2\.10"):
        open_pickle(path, "m")


def test_what_is_said_without_the_flag(tmp_path: Path) -> None:
    text = refusal(tmp_path / "m.pt")
    assert "m.pt" in text
    assert "--allow-pickle" in text
    assert len(text.splitlines()) <= 3


def test_mutated_files_never_escape_the_error_tree(tmp_path: Path) -> None:
    """500 seeded mutations: opened and read, or refused as they should be."""
    path = saved(tmp_path / "m.pt", {"a": WEIGHT, "b": WEIGHT[0].clone()})
    content, draw = path.read_bytes(), random.Random(0)
    outcomes = [0, 0]
    for _ in range(500):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(
            bytes(changed[: draw.choice([len(changed), draw.randrange(len(changed))])])
        )
        try:
            opened = open_pickle(path, "m")
            for name in opened.names():
                opened.read(name).sum()
            outcomes[0] += 1
        except CheckpointError:
            outcomes[1] += 1
    assert min(outcomes) > 20
