"""One plugin, installed for the tests: nothing but mtk-core and mtk-cli is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

TOY = Path(__file__).parent / "toy"
ENTRY = "[mtk]\ntoy = toy_plugin\n"
METADATA = "Metadata-Version: 2.1\nName: mtk-toy\nVersion: 0.3.0\n"


def install(folder, *, name="mtk-toy", module="toy_plugin"):
    """Put a distribution with one entry point into a folder of the import path."""
    info = folder / f"{name.replace('-', '_')}-0.3.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA.replace("mtk-toy", name))
    (info / "entry_points.txt").write_text(ENTRY.replace("toy_plugin", module))


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    for file in TOY.glob("*.py"):
        shutil.copy(file, folder)
    install(folder)
    return folder


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def toy(site, tmp_path, monkeypatch):
    """Only the toy plugin is installed; the current folder is empty."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MTK_PLUGINS", "mtk-toy")
    monkeypatch.setenv("MTK_CACHE", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR", "MTK_DEBUG", "MTK_RESULTS", "MTK_JOBS"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def mtk(toy):
    """Run a command in this process."""

    def run(*args):
        from mtk_cli.main import cli

        result = CliRunner().invoke(cli, [str(arg) for arg in args])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def process(toy, site):
    """Run a command, or Python code, in a process of its own."""

    def run(*args, code=None, **env):
        command = ["-c", code] if code else ["-m", "mtk_cli", *map(str, args)]
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(site), **env},
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def models(toy):
    """base.safetensors and two experts in the current folder."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    for name in ("base", "e0", "e1"):
        weight = torch.randn(4, 4, generator=generator)
        state = {"a.weight": weight, "steps": torch.tensor(3)}
        state["b.weight"] = weight.clone()
        state["c.weight"] = torch.randn(2, 4, generator=generator)
        save_file(state, toy / f"{name}.safetensors")
    return ["--expert", "e0.safetensors", "--expert", "e1.safetensors"]
