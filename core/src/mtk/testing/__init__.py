"""Conformance checks: does a merging method keep the contract it declares?

Three ways in: the command ``mtk check NAME``, :func:`check_method`, and, for the test
suite of a plugin, :func:`parametrize_checks`::

    import mtk.testing

    @mtk.testing.parametrize_checks("my_method")
    def test_my_method(check):
        check()

Checks come in groups: ``declaration``, ``contract``, ``needs``, ``invariants`` and
``protocol``. None knows a method by name. What is special about a method is declared, or
is an expected failure ``{check id: reason}``; a check that passes against expectation
fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.testing import (
    _basics,
    _contract,
    _declaration,
    _inputs,
    _invariants,
    _needs,
    _protocol,
)
from mtk.testing._checks import (
    Check,
    checked_expectations,
    run_all,
    subject_of,
)
from mtk.testing._models import Case, make_case
from mtk.testing._report import CheckReport, CheckResult
from mtk.testing._toy import toy_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mtk.declare import Method
    from mtk.loading import Provided, Registry

CHECKS: tuple[Check, ...] = (
    *_declaration.CHECKS,
    *_basics.CHECKS,
    *_contract.CHECKS,
    *_inputs.CHECKS,
    *_needs.CHECKS,
    *_invariants.CHECKS,
    *_protocol.CHECKS,
)

__all__ = [
    "CHECKS",
    "Case",
    "Check",
    "CheckReport",
    "CheckResult",
    "check_method",
    "make_case",
    "parametrize_checks",
    "toy_registry",
]


def check_method(
    method: str | Method | Provided[Method],
    *,
    expected_failures: Mapping[str, str] | None = None,
    registry: Registry | None = None,
) -> CheckReport:
    """Run every check on one method.

    Args:
        method: a name, a declaration, or a declaration with its plugin.
        expected_failures: check id -> why it fails. An unexpected pass is no success.
        registry: where a name is looked up; the installed plugins by default.

    Raises:
        UsageError: no such method, or an expectation about an unknown check.
    """
    expected = checked_expectations(CHECKS, expected_failures)
    return run_all(CHECKS, subject_of(method, registry), expected)


def parametrize_checks(
    method: str | Method | Provided[Method],
    *,
    expected_failures: Mapping[str, str] | None = None,
    registry: Registry | None = None,
) -> Callable[[Any], Any]:
    """Decorate a pytest function that calls its argument ``check``: one test per check.

    Arguments as for :func:`check_method`. What does not apply is skipped with its reason;
    an expected failure is an xfail, and an unexpected pass fails.
    """
    from mtk.testing._pytest import parametrize

    return parametrize(CHECKS, method, expected_failures, registry)
