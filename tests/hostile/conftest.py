"""Two model folders, of which a test makes one hostile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safety_models import make_place

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)
