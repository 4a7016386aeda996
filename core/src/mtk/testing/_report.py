"""What a run of the conformance checks found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal[
    "passed", "failed", "expected failure", "unexpected pass", "not applicable"
]
OUTCOMES: tuple[Outcome, ...] = (
    "passed",
    "failed",
    "unexpected pass",
    "expected failure",
    "not applicable",
)
SCHEMA = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check of one method.

    Args:
        id: stable name, ``group.what``.
        message: of a failure: why it matters, values, shapes, a snippet.
        reason: why the check does not apply, or why its failure was expected.
    """

    id: str
    group: str
    outcome: Outcome
    message: str = ""
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether this result is no cause for complaint."""
        return self.outcome not in ("failed", "unexpected pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All checks of one method, in their fixed order."""

    method: str
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed and nothing passed against expectation."""
        return all(result.ok for result in self.results)

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """Failures and unexpected passes."""
        return tuple(result for result in self.results if not result.ok)

    def counts(self) -> dict[Outcome, int]:
        """Outcome -> number of checks, outcomes without a check left out."""
        found = [result.outcome for result in self.results]
        return {
            outcome: found.count(outcome) for outcome in OUTCOMES if outcome in found
        }

    def summary(self) -> str:
        """Count everything in one line, with the reasons of what did not apply."""
        parts = []
        for outcome, count in self.counts().items():
            text = f"{count} {_plural(outcome, count)}"
            if outcome == "not applicable":
                reasons = dict.fromkeys(
                    result.reason
                    for result in self.results
                    if result.outcome == outcome
                )
                text += f" ({'; '.join(reasons)})"
            parts.append(text)
        checks = "check" if len(self.results) == 1 else "checks"
        return f"{len(self.results)} {checks}: {', '.join(parts) or 'nothing ran'}"

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's types; ``schema`` changes when a key changes meaning."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "ok": self.ok,
            "summary": self.summary(),
            "counts": self.counts(),
            "results": [asdict(result) for result in self.results],
        }


def _plural(outcome: Outcome, count: int) -> str:
    if count == 1 or outcome in ("passed", "failed", "not applicable"):
        return outcome
    return outcome + ("es" if outcome.endswith("pass") else "s")
