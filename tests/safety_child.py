"""One warm process that runs each command in a fork: limited, without network, and watched.

Started as a script it is the server; :class:`Child` is its client. A command can be killed
at the k-th step that touches the disk, so that a test can try every k.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ADDRESS_SPACE = 2 << 30
# No defect may fill the disk of whoever runs the tests.
FILE_SIZE = 64 << 20
SECONDS = 30
STEPS = {
    "open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "shutil.rmtree",
    "ctypes.dlsym",
}  # fmt: skip


@dataclass
class Outcome:
    """What a command did. ``code`` is minus the signal that ended it."""

    code: int
    stderr: str
    stdout: str
    seconds: float
    steps: int

    def refused(self) -> str:
        """The message, after checking that it is one as it should be."""
        assert self.code == 2, self
        assert 1 <= len(self.stderr.splitlines()) <= 3, self
        assert "Traceback" not in self.stderr
        assert "defect of mtk" not in self.stderr
        assert self.seconds < 10
        return self.stderr


class Child:
    """The client: ``child.mtk("merge", ...)`` in a folder."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(self, *arguments: object, cwd: Path, **how: object) -> None:
        """Begin a command; ``finish`` waits for it. Commands run side by side."""
        line = {"args": [str(a) for a in arguments], "cwd": str(cwd), **how}
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def finish(self) -> Outcome:
        """The outcome of the command that was started first."""
        return Outcome(**json.loads(self._process.stdout.readline()))

    def mtk(self, *arguments: object, cwd: Path, **how: object) -> Outcome:
        """Run one command.

        Args:
            arguments: of the command line.
            cwd: where it runs.
            how: ``kill`` (step), ``umask``, ``file_size``, ``plain`` (no right to write
                where modes forbid it), ``change`` ([step, shell command]),
                ``wait_for`` (a file that starts it), ``address_space`` (bytes; -1: any).
        """
        self.start(*arguments, cwd=cwd, **how)
        return self.finish()

    def close(self) -> None:
        """End the server."""
        self._process.communicate()


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("the network was used")


def _drop_capabilities() -> None:
    """Let modes hold for root as well: no CAP_DAC_OVERRIDE, no CAP_DAC_READ_SEARCH."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if libc.syscall(126, header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def _watch(kill: int | None, change: tuple[int, str] | None, count: list[int]) -> None:
    """Count the steps that touch what is called ``out...``; stop at one of them."""

    def step() -> None:
        count[0] += 1
        if count[0] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if change and count[0] == change[0]:
            os.system(change[1])

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in STEPS and any(
            isinstance(a, str | bytes) and _ours(os.fsencode(a)) for a in arguments
        ):
            step()

    for name in ("fsync", "pwrite"):
        real = getattr(os, name)

        def twice(*arguments: object, real: object = real) -> object:
            step()
            result = real(*arguments)
            step()
            return result

        setattr(os, name, twice)
    sys.addaudithook(hook)


def _ours(name: bytes) -> bool:
    return name == b"renameat2" or name.startswith(b"out") or b"/out" in name


def _run(line: dict[str, object], answer: int) -> None:
    from click.testing import CliRunner

    from mtk_cli.main import cli

    space = line.get("address_space", ADDRESS_SPACE)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    signal.alarm(SECONDS)
    os.chdir(line["cwd"])
    os.umask(line.get("umask", 0o022))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (line.get("file_size", FILE_SIZE),) * 2)
    if line.get("plain"):
        _drop_capabilities()
    if "wait_for" in line:
        while not Path(line["wait_for"]).exists():
            time.sleep(0.001)
    count = [0]
    if "change" in line or "kill" in line or "count" in line:
        _watch(line.get("kill"), line.get("change"), count)
    start = time.monotonic()
    outcome = CliRunner().invoke(cli, line["args"])
    seconds = time.monotonic() - start
    found = [int(outcome.exit_code), outcome.stderr, outcome.stdout, seconds, count[0]]
    text = json.dumps(found).encode()
    while text:
        text = text[os.write(answer, text) :]


# Loaded before the forks, so that each takes a fraction of a second.
_MODULES = (
    "click.testing", "mtk.engine", "mtk.folders", "mtk.inspection", "mtk.pickles",
    "mtk.provenance", "mtk.recipe_toml", "mtk.shards", "mtk.vocabulary",
    "mtk_cli.commands.inspect", "mtk_cli.commands.merge", "mtk_cli.main",
    "mtk_recipes_mergekit.reading", "mtk_adapters_full.layouts",
)  # fmt: skip


def _serve() -> None:
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in _MODULES:
        importlib.import_module(name)
    from mtk.loading import load, resolve

    for provided in load().adapters:
        resolve(provided.item.target)
    socket.socket.connect = socket.create_connection = _refuse
    for text in sys.stdin:
        line = json.loads(text)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                _run(line, write)
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            found = answer.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not found:
            found = json.dumps([code or 99, "", "", 0.0, 0])
        print(
            json.dumps(
                dict(zip(Outcome.__annotations__, json.loads(found), strict=True))
            ),
            flush=True,
        )


if __name__ == "__main__":
    _serve()
