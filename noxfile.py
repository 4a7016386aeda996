"""Longer sessions than `make test`: `nox -s NAME`."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests"]
PLUGINS = sorted(path.parent.name for path in Path("plugins").glob("*/pyproject.toml"))


@nox.session
def tests(session: nox.Session) -> None:
    """Everything, slow tests included, in a fresh environment."""
    session.install("-r", "requirements-dev.txt")
    session.run("python", "-m", "pytest", "-q", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint and types."""
    session.install("-r", "requirements-dev.txt")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run(
        "mypy", "core/src", "cli/src", *(f"plugins/{name}/src" for name in PLUGINS)
    )


@nox.session
@nox.parametrize("plugin", PLUGINS)
def isolated(session: nox.Session, plugin: str) -> None:
    """The wheels of the core and one plugin alone, and that plugin's own tests."""
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    for folder in ("core", f"plugins/{plugin}"):
        session.run(
            "python",
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "-w",
            str(wheels),
            f"./{folder}",
        )
    session.install("-c", "constraints.txt", "pytest", *map(str, wheels.glob("*.whl")))
    session.run("python", "-m", "pytest", "-q", f"plugins/{plugin}/tests")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated parts and build the pages; warnings are errors."""
    session.install("-r", "requirements-dev.txt", "-r", "docs/requirements.txt")
    session.run("cog", "-P", "-r", *map(str, Path("docs/reference").glob("*.md")))
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build/html")
