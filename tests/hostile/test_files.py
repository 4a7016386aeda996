"""Files from strangers: refused by name, in bounded memory and time, and nothing is written.

All cases run in one child process with an address-space limit, a time limit, and network
functions that fail. The child runs the commands as a user would and reports what it saw.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

CHILD = """
import json, resource, signal, socket, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
signal.alarm(120)
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = refuse
from click.testing import CliRunner
from mtk_cli.main import cli
import torch
held = {int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')}
for line in sys.stdin:
    name, arguments = json.loads(line)
    start = time.monotonic()
    outcome = CliRunner().invoke(cli, arguments)
    print(json.dumps([name, int(outcome.exit_code), outcome.stderr, outcome.stdout,
                      time.monotonic() - start]), flush=True)
"""

GOOD = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(3)}


def header(table: object, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


class Payload:
    """Would write the canary if it were ever unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (exec, (f"open({str(self.canary)!r}, 'w').write('touched')",))


def write_cases(root: Path, canary: Path) -> dict[str, Path]:
    """Name -> an expert that must be refused."""
    cases: dict[str, Path] = {}

    def raw(name: str, content: bytes) -> None:
        cases[name] = root / f"{name}.safetensors"
        cases[name].write_bytes(content)

    def tensors(name: str, state: dict[str, torch.Tensor]) -> None:
        cases[name] = root / f"{name}.safetensors"
        save_file(state, cases[name])

    def folder(name: str) -> Path:
        cases[name] = root / name
        cases[name].mkdir()
        return cases[name]

    raw("empty", b"")
    raw("pickle", pickle.dumps(Payload(canary)))
    raw("huge-header", (1 << 40).to_bytes(8, "little") + b"{}")
    raw("truncated", header({"a": entry([4], 0, 16)}, b"1234"))
    raw("trailing", header({"a": entry([1], 0, 4)}, b"12345678"))
    overlapping = {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}
    raw("overlapping", header(overlapping, b"123456789012"))
    raw("overflow", header({"a": entry([1 << 40, 1 << 40], 0, 4)}, b"1234"))
    raw("nested", header(b"[" * 200_000))
    raw("deep", header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000))
    twice = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 1
    twice += b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    raw("twice", header(twice, b"1234"))
    raw("no-tensors", header({}))
    raw("empty-but-huge", header({"a": entry([0, 1 << 50], 0, 0)}))
    tensors("missing", {"b": GOOD["b"]})
    tensors("extra", GOOD | {"c": torch.ones(1)})
    tensors("path-names", {"../../evil": torch.ones(1)})
    tensors("shape", GOOD | {"b": torch.ones(4)})
    tensors("dtype", GOOD | {"b": torch.ones(3).half()})
    tensors("nan", GOOD | {"b": torch.tensor([1.0, float("nan"), 1.0])})
    tensors("inf", GOOD | {"b": torch.tensor([1.0, float("inf"), 1.0])})
    index = "model.safetensors.index.json"
    for name, target in (
        ("index-up", "../good.safetensors"),
        ("index-absolute", str(root / "good.safetensors")),
        ("index-missing", "gone.safetensors"),
    ):
        (folder(name) / index).write_text(json.dumps({"weight_map": {"b": target}}))
        save_file(GOOD, cases[name] / "part.safetensors")
    (folder("index-nested") / index).write_text("[" * 200_000)
    save_file(GOOD, cases["index-nested"] / "part.safetensors")
    os.mkfifo(folder("fifo") / "model.safetensors")
    cases["fifo-file"] = root / "pipe.safetensors"
    os.mkfifo(cases["fifo-file"])
    torch.save(GOOD, folder("only-pickle") / "pytorch_model.bin")
    (folder("dangling") / "model.safetensors").symlink_to(root / "nowhere")
    return cases


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory):
    """Case -> (exit code, stderr, seconds); and the folder afterwards."""
    root = tmp_path_factory.mktemp("hostile")
    canary = root / "canary"
    canary.write_text("untouched")
    save_file(GOOD, root / "good.safetensors")
    cases = write_cases(root, canary)
    before = set(root.rglob("*"))
    out = root / "out.safetensors"
    lines = []
    for name, path in cases.items():
        expert = ["--expert", str(path)]
        merge = [
            "merge",
            "--method",
            "task_arithmetic",
            "--base",
            str(root / "good.safetensors"),
        ]
        good = ["--expert", str(root / "good.safetensors")]
        lines.append([name, [*merge, *good, *expert, "--output", str(out)]])
        lines.append(
            [f"{name}: inspect", ["inspect", str(path), "--against", merge[-1]]]
        )
        lines.append([f"{name}: plan", [*merge, *expert, "--dry-run"]])
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        cwd=root,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(lines), (
        done.stderr[-2000:] or f"died after {reports[-1:]}"
    )
    assert canary.read_text() == "untouched"
    assert set(root.rglob("*")) == before
    return {name: tuple(rest) for name, *rest in reports}


NAMES = sorted(
    [
        "empty", "pickle", "huge-header", "truncated", "trailing", "overlapping", "overflow",
        "nested", "deep", "twice", "no-tensors", "empty-but-huge", "missing", "extra",
        "path-names", "shape", "dtype", "nan", "inf", "index-up", "index-absolute",
        "index-missing", "index-nested", "fifo", "fifo-file", "only-pickle", "dangling",
    ]
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_refuses_it_by_name(outcomes, name: str) -> None:
    code, err, _, seconds = outcomes[name]
    assert code == 2, err
    assert 1 <= len(err.splitlines()) <= 3
    assert "Traceback" not in err
    assert name in err or "pipe" in err or "good.safetensors" in err
    assert seconds < 10


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_it_or_planning_does_no_harm(outcomes, name: str) -> None:
    for what in ("inspect", "plan"):
        code, err, _, seconds = outcomes[f"{name}: {what}"]
        assert code in (0, 2), err
        assert len(err.splitlines()) <= 3
        assert seconds < 10


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1 << 20)}, tmp_path / "m.safetensors")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from mtk_cli.main import cli\n"
        "cli(['merge', '--method', 'average', '--expert', 'm.safetensors', '-o', 'o.safetensors'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "o.safetensors" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_mutated_files_never_escape_the_error_tree(tmp_path: Path) -> None:
    """2,000 seeded mutations of a small file: opened, or refused as they should be."""
    import random

    from mtk.checkpoint import SafetensorsCheckpoint
    from mtk.errors import CheckpointError

    path = tmp_path / "m.safetensors"
    save_file(GOOD, path)
    content, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(2000):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        cut = draw.choice([len(changed), draw.randrange(len(changed))])
        path.write_bytes(bytes(changed[:cut]))
        try:
            opened = SafetensorsCheckpoint([path], "m")
            for name in opened.names():
                opened.read(name)
        except CheckpointError:
            refused += 1
    assert 100 < refused < 2000
