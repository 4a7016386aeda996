"""Every installed method passes every check that applies to it."""

from __future__ import annotations

import pytest

import mtk
from mtk.testing import check_method

# Method -> why it is left out. Empty, and meant to stay so.
LEFT_OUT: dict[str, str] = {}
METHODS = [provided.qualified for provided in mtk.load().methods]


def test_there_is_something_to_check() -> None:
    assert len(METHODS) >= 12
    assert set(LEFT_OUT) <= set(METHODS)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LEFT_OUT])
def test_method_keeps_the_contract(name: str) -> None:
    report = check_method(name)
    failures = [r for r in report.results if r.outcome in ("failed", "unexpected pass")]
    assert not failures, "\n\n".join(f"{r.id}: {r.message}" for r in failures)
    assert report.ok
