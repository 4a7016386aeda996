"""What a check is, what it is run on, and how its failure is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import indent
from typing import TYPE_CHECKING, Any

from mtk.declare import Method
from mtk.errors import MtkError, UsageError, first_line
from mtk.loading import Provided, Registry, load
from mtk.parameters import suggestion
from mtk.testing._models import Case, make_case
from mtk.testing._report import CheckReport, CheckResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mtk.loading import Plugin


class Failed(Exception):
    """A check found something; the text gives values and shapes."""

    def __init__(self, detail: str, snippet: str = "") -> None:
        super().__init__(detail)
        self.snippet = snippet


class Differs(Failed):
    """The last two merges of a check should agree, and do not."""


class NotApplicable(Exception):
    """A check has nothing to say about this method; the text says why."""


@dataclass(slots=True, kw_only=True)
class Subject:
    """The method under test, and what is remembered between its checks."""

    method: Method
    plugin: Plugin | None = None
    cases: list[Case] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    results: dict[str, CheckResult] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Qualified, where a plugin provides it."""
        if self.plugin is None:
            return self.method.name
        return f"{self.plugin.distribution}:{self.method.name}"

    @property
    def installed(self) -> bool:
        """Whether the method can be found again by its name in a new process."""
        return self.plugin is not None and self.plugin.version != "file"

    def case(self, **options: Any) -> Case:
        """Small models for this method; failures quote how they were made."""
        case = make_case(self.method, **options)
        if self.installed:
            case.recipe[0] = case.recipe[0].replace("(method", f"({self.name!r}", 1)
        self.cases.append(case)
        return case

    def lookup(self) -> str:
        """Code that gives the declaration a name."""
        if self.installed:
            return f"method = mtk.load().method({self.name!r}).item"
        return f"# method: the mtk.Method named {self.method.name!r}"

    def snippet(self, last: int = 1) -> str:
        """Code that repeats the last cases."""
        if self.cases:
            lines = ["from mtk.testing import make_case"]
            lines += [line for case in self.cases[-last:] for line in case.recipe]
        else:
            named = repr(self.name) if self.installed else "method"
            lines = ["from mtk.testing import check_method", f"check_method({named})"]
        if not self.installed:
            lines.insert(1, self.lookup())
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Args:
        id: ``group.what``, stable.
        why: one sentence: what must hold and why it matters.
        run: raises :class:`Failed` or :class:`NotApplicable`, or returns.
        requires: ids of checks without which this one would only repeat a failure.
    """

    id: str
    why: str
    run: Callable[[Subject], None]
    requires: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The part of the id before the dot."""
        return self.id.partition(".")[0]


def subject_of(
    method: str | Method | Provided[Method], registry: Registry | None = None
) -> Subject:
    """A name, a declaration, or a declaration with its plugin, as a subject."""
    if isinstance(method, Method):
        return Subject(method=method)
    if isinstance(method, str):
        method = (registry or load()).method(method)
    return Subject(method=method.item, plugin=method.plugin)


def run_check(checks: Sequence[Check], check: Check, subject: Subject) -> CheckResult:
    """Run one check, after the ones it requires; each runs once per subject."""
    if check.id not in subject.results:
        required = [other for other in checks if other.id in check.requires]
        blocked = [
            other.id
            for other in required
            if run_check(checks, other, subject).outcome in ("failed", "not applicable")
        ]
        if blocked:
            reason = _root(subject, blocked[0])
            subject.results[check.id] = CheckResult(
                id=check.id, group=check.group, outcome="not applicable", reason=reason
            )
        else:
            subject.results[check.id] = _run(check, subject)
    return subject.results[check.id]


def _root(subject: Subject, blocked: str) -> str:
    result = subject.results[blocked]
    if result.outcome == "not applicable":
        return result.reason
    return f"{blocked} failed"


def _run(check: Check, subject: Subject) -> CheckResult:
    subject.cases.clear()
    try:
        check.run(subject)
    except NotApplicable as reason:
        return CheckResult(
            id=check.id, group=check.group, outcome="not applicable", reason=str(reason)
        )
    except Failed as failure:
        last = 2 if isinstance(failure, Differs) else 1
        code = failure.snippet or subject.snippet(last)
        message = _message(check, str(failure), code)
    except MtkError as error:
        text = f"{type(error).__name__}: {error}"
        message = _message(check, text, subject.snippet())
    except Exception as error:  # a check reports whatever a method does
        text = f"{type(error).__name__}: {first_line(error)}"
        message = _message(check, text, subject.snippet())
    else:
        return CheckResult(id=check.id, group=check.group, outcome="passed")
    return CheckResult(
        id=check.id, group=check.group, outcome="failed", message=message
    )


def _message(check: Check, detail: str, code: str) -> str:
    return (
        f"{check.id}: {check.why}\n{indent(detail, '  ')}\n"
        f"  Reproduce:\n{indent(code, '    ')}"
    )


def judged(result: CheckResult, expected_failures: Mapping[str, str]) -> CheckResult:
    """The result in the light of what was expected; expectations are strict."""
    reason = expected_failures.get(result.id)
    if reason is None or result.outcome == "not applicable":
        return result
    if result.outcome == "failed":
        return CheckResult(
            id=result.id,
            group=result.group,
            outcome="expected failure",
            message=result.message,
            reason=reason,
        )
    return CheckResult(
        id=result.id,
        group=result.group,
        outcome="unexpected pass",
        message=f"{result.id} passed, but was expected to fail: {reason}\n"
        "  Take it out of expected_failures",
        reason=reason,
    )


def checked_expectations(
    checks: Sequence[Check], expected_failures: Mapping[str, str] | None
) -> dict[str, str]:
    """Refuse expectations about checks that do not exist, or without a reason."""
    ids = [check.id for check in checks]
    expected = dict(expected_failures or {})
    for id_, reason in expected.items():
        if id_ not in ids:
            raise UsageError(f"no check named {id_!r}{suggestion(id_, ids)}")
        if not reason.strip():
            raise UsageError(f"the expected failure of {id_} needs a reason")
    return expected


def run_all(
    checks: Sequence[Check], subject: Subject, expected_failures: Mapping[str, str]
) -> CheckReport:
    """Every check, in order."""
    results = [
        judged(run_check(checks, check, subject), expected_failures) for check in checks
    ]
    return CheckReport(method=subject.name, results=tuple(results))
