"""What holds for every distribution of the workspace."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import mtk

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = sorted(
    path.parent
    for path in [*ROOT.glob("*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]
)


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_every_distribution_has_one_shape(folder: Path) -> None:
    data = project(folder)
    assert data["name"].startswith("mtk-")
    assert data["version"] == mtk.__version__
    assert data["license"] == "Apache-2.0"
    assert (folder / "README.md").is_file()
    (package,) = (path for path in (folder / "src").iterdir() if path.is_dir())
    assert (package / "py.typed").is_file()
    siblings = [d for d in data["dependencies"] if d.startswith("mtk-")]
    if folder.name == "core":
        assert not siblings
    else:
        assert siblings == ["mtk-core>=0.1.0,<0.2"]
    if folder.parent.name == "plugins":
        (target,) = data["entry-points"]["mtk"].values()
        assert target == f"{package.name}.plugin"


def test_requirements_name_every_distribution() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text().split()
    for folder in DISTRIBUTIONS:
        assert f"./{folder.relative_to(ROOT)}" in lines


def test_no_plugin_imports_another() -> None:
    packages = {
        folder.name: next(p.name for p in (folder / "src").iterdir() if p.is_dir())
        for folder in DISTRIBUTIONS
        if folder.parent.name == "plugins"
    }
    for name, own in packages.items():
        for file in (ROOT / "plugins" / name / "src").rglob("*.py"):
            text = file.read_text()
            for other in set(packages.values()) - {own}:
                assert f"import {other}" not in text, file
                assert f"from {other}" not in text, file


def test_modules_stay_short() -> None:
    for folder in DISTRIBUTIONS:
        for file in (folder / "src").rglob("*.py"):
            lines = len(file.read_text().splitlines())
            assert lines <= 400, f"{file}: {lines} lines"


def test_every_file_the_top_level_promises_is_there() -> None:
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE",
        "constraints.txt",
    ):
        assert (ROOT / name).is_file(), name
