"""Wheels of the workspace, fresh environments to install them in, and a warm child."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from safety_child import Child

ROOT = Path(__file__).parent.parent
PROJECTS = [
    ROOT / "core",
    ROOT / "cli",
    *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml")),
]


def run(*command: str | Path, **changes) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        **changes,
    )


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of everything we ship."""
    folder, sources = (
        tmp_path_factory.mktemp("wheels"),
        tmp_path_factory.mktemp("sources"),
    )
    for project in PROJECTS:
        copy = sources / project.name
        shutil.copytree(
            project, copy, ignore=shutil.ignore_patterns("tests", "__pycache__")
        )
        build_wheel(copy, folder)
    return folder


def build_wheel(project: Path, folder: Path) -> None:
    done = run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index",
        "--no-build-isolation", "-w", folder, project,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class Environment:
    """A fresh virtual environment, away from the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv")
        self.bin = folder / "venv" / "bin"
        self.python = self.bin / "python"
        paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        own = Path(sysconfig.get_path("purelib", vars=paths))
        shared = [*site.getsitepackages(), sysconfig.get_path("purelib")]
        # A plain path line: the editable installs of this checkout are not followed.
        (own / "shared.pth").write_text("\n".join(dict.fromkeys(shared)) + "\n")
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PYTHON")
        } | {"MTK_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}

    def install(self, *wheels: Path) -> None:
        done = run(
            sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "--no-deps",
            "--no-index", "--force-reinstall", *wheels,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def run(
        self, *arguments: str | Path, **changes
    ) -> subprocess.CompletedProcess[str]:
        """This environment's Python."""
        return run(self.python, *arguments, env=self.env, **changes)

    def mtk(self, *arguments: str | Path, code: int = 0) -> str:
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        done = run(self.bin / "mtk", *arguments, cwd=work, env=self.env)
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture(scope="session")
def environment():
    """The class, so that tests need not import this file."""
    return Environment


@pytest.fixture(scope="session")
def build():
    """``build(project, folder)``: a wheel."""
    return build_wheel


@pytest.fixture(scope="module")
def child():
    """A process that runs command lines in forks of itself."""
    process = Child()
    yield process
    process.close()
