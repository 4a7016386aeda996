"""The first merge: whatever fails here is not repeated by other checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.testing._checks import Check, Failed, NotApplicable
from mtk.testing._observe import observe

if TYPE_CHECKING:
    from mtk.testing._checks import Subject

_MOST = 5  # findings that a message lists
_DECLARED = ("declaration.targets", "declaration.signature")
BASICS = (
    "contract.runs",
    "contract.inputs-untouched",
    "contract.shapes",
    "contract.finite",
)


def _none(findings: list[str]) -> None:
    if findings:
        more = [f"and {len(findings) - _MOST} more"] if len(findings) > _MOST else []
        raise Failed("\n".join(findings[:_MOST] + more))


def runs(subject: Subject) -> None:
    """A plain merge ends without an error."""
    _none(observe(subject).errors)


def inputs_untouched(subject: Subject) -> None:
    """All bytes of all inputs are the same before and after."""
    _none(observe(subject).changed)


def shapes(subject: Subject) -> None:
    """Every result has the shape of what it was made from."""
    _none(observe(subject).misshapen)


def finite(subject: Subject) -> None:
    """No result holds NaN or infinity."""
    _none(observe(subject).not_finite)


def arithmetic(subject: Subject) -> None:
    """No operation returns 16-bit floats."""
    if subject.method.output != "static":
        raise NotApplicable(f"{subject.method.output} results may be stored in 16 bits")
    _none(list(dict.fromkeys(observe(subject).narrow)))


CHECKS = (
    Check(
        "contract.runs",
        "Plain models and default parameters must give a result of the declared kind.",
        runs,
        _DECLARED,
    ),
    Check(
        "contract.inputs-untouched",
        "Inputs are memory-mapped files and shared between methods; work on copies.",
        inputs_untouched,
        _DECLARED,
    ),
    Check(
        "contract.shapes",
        "A merged checkpoint is loaded into the architecture of its inputs.",
        shapes,
        _DECLARED,
    ),
    Check(
        "contract.finite",
        "One NaN makes all outputs of a model NaN.",
        finite,
        _DECLARED,
    ),
    Check(
        "contract.arithmetic",
        "16-bit models are handed over in float32; narrower steps round twice.",
        arithmetic,
        BASICS,
    ),
)
