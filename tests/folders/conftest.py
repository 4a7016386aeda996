"""Models to merge, which must come out of every test unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safety_folders import contents, write_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with three models; their bytes must be the same at the end."""
    for seed, name in enumerate(("base", "e0", "e1")):
        write_model(tmp_path / name, seed)
    before = contents(tmp_path / "base", tmp_path / "e0", tmp_path / "e1")
    yield tmp_path
    assert contents(tmp_path / "base", tmp_path / "e0", tmp_path / "e1") == before
