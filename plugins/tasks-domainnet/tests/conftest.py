"""The folders of ``miniature.py``, for the tests beside it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from mtk.roots import note_root


@pytest.fixture(scope="session")
def miniature():
    """The module, loaded by its path: tests are no package."""
    file = Path(__file__).with_name("miniature.py")
    spec = importlib.util.spec_from_file_location("domainnet_miniature", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def whole_root(miniature, tmp_path_factory):
    """Data and CLIP; read only."""
    root = tmp_path_factory.mktemp("domainnet")
    miniature.put_root(root)
    return root


@pytest.fixture
def root(whole_root, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(whole_root, tmp_path / "root")


@pytest.fixture
def cache(tmp_path, root):
    """A cache in which the root is noted."""
    note_root(tmp_path / "cache", root)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def pipeline(miniature, tmp_path_factory):
    """A folder in the layout of Stable Diffusion 2.1, random and tiny."""
    folder = tmp_path_factory.mktemp("sd") / "pipeline"
    miniature.put_pipeline(folder)
    return folder


@pytest.fixture
def sd_root(root, pipeline):
    """Data, CLIP and Stable Diffusion."""
    shutil.copytree(pipeline, root / "stable-diffusion-2-1")
    return root


def ignore(message, fraction=None):
    """A report that nobody reads."""


@pytest.fixture
def quiet():
    return ignore


@pytest.fixture
def mini(miniature):
    return miniature.MINI


@pytest.fixture
def regime(miniature):
    return miniature.REGIME
