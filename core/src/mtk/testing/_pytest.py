"""One test per check, for the test suites of plugins."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mtk.testing._checks import (
    Check,
    Subject,
    checked_expectations,
    judged,
    run_check,
    subject_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mtk.declare import Method
    from mtk.loading import Provided, Registry


@dataclass(eq=False)
class _Subjects:
    """The subject of all tests of one parametrisation, found when the first one runs."""

    method: str | Method | Provided[Method]
    registry: Registry | None = None

    @cached_property
    def subject(self) -> Subject:
        return subject_of(self.method, self.registry)


@dataclass(frozen=True, eq=False)
class BoundCheck:
    """A check and its method; calling it passes, fails, skips or fails as expected."""

    check: Check
    checks: Sequence[Check] = field(repr=False)
    found: _Subjects = field(repr=False)
    expected: Mapping[str, str] = field(repr=False)

    def __call__(self) -> None:
        """Run the check as the body of a test."""
        import pytest

        result = run_check(self.checks, self.check, self.found.subject)
        result = judged(result, self.expected)
        if result.outcome == "not applicable":
            pytest.skip(f"not applicable: {result.reason}")
        if result.outcome == "expected failure":
            pytest.xfail(result.reason)
        if not result.ok:
            pytest.fail(result.message, pytrace=False)


def parametrize(
    checks: Sequence[Check],
    method: str | Method | Provided[Method],
    expected_failures: Mapping[str, str] | None,
    registry: Registry | None,
) -> Callable[[Any], Any]:
    """A decorator that gives a test one argument, ``check``."""
    import pytest

    expected = checked_expectations(checks, expected_failures)
    found = _Subjects(method, registry)
    cases = [
        pytest.param(BoundCheck(check, checks, found, expected), id=check.id)
        for check in checks
    ]
    mark: Callable[[Any], Any] = pytest.mark.parametrize("check", cases)
    return mark
