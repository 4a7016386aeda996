from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from mtk_recipes_mergekit.reading import read

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def maker():
    """The script that made the reference, as a module."""
    spec = importlib.util.spec_from_file_location(
        "mergekit_reference", HERE / "make_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def models(maker, tmp_path_factory):
    """A folder with the models that the reference was made from."""
    folder = tmp_path_factory.mktemp("models")
    maker.write_models(folder)
    return folder


@pytest.fixture
def recipe(tmp_path):
    """Read a recipe that is given as text."""

    def make(text, name="config.yml"):
        path = tmp_path / name
        path.write_text(dedent(text).lstrip("\n"))
        return read(path)

    return make
