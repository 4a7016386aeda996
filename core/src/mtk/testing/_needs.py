"""Checks that what a method declares to need is what it uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.errors import MtkError, UsageError
from mtk.testing._basics import BASICS
from mtk.testing._checks import Check, Differs, Failed, NotApplicable
from mtk.testing._compare import effect, equal_bytes, stored
from mtk.testing._declaration import nothing_undeclared
from mtk.testing._models import default_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mtk.declare import Method
    from mtk.results import Merged
    from mtk.testing._checks import Subject

_KINDS = ("full", "lora", "moe")


def _unchanged(one: Merged, two: Merged) -> bool:
    pairs = [(stored(one), stored(two)), *zip(effect(one), effect(two), strict=True)]
    return all(
        name in b and equal_bytes(tensor, b[name])
        for a, b in pairs
        for name, tensor in a.items()
    )


def _matters(subject: Subject, what: str) -> None:
    """Drawing something anew changes the result, at the defaults or another value."""
    for values in _variants(subject.method):
        case = subject.case()
        try:
            before = case.merge(**values)
            after = subject.case().redraw(what).merge(**values)
        except UsageError:
            if not values:
                raise
            continue  # values that do not go together
        if not _unchanged(before, after):
            return
    raise Differs(
        f"another {what} gives the same bytes, at the defaults and with any one "
        "parameter changed"
    )


def _variants(method: Method) -> Iterator[dict[str, Any]]:
    """The defaults, then one parameter at a time at another value."""
    yield {}
    for param in method.params:
        values: list[Any] = [*param.choices, *param.grid]
        if param.type == "bool":
            values = [not param.default]
        elif param.type in ("float", "int") and param.default is not None:
            values.append(param.default + 1)
        for value in values:
            if value != param.default and param.stage == "merge":
                yield {param.name: value}


def base(subject: Subject) -> None:
    """Another base gives another result."""
    if not subject.method.needs.base:
        raise NotApplicable("declares no base")
    _matters(subject, "base")


def statistics(subject: Subject) -> None:
    """Other statistics give another result, each on its own."""
    if not subject.method.needs.statistics:
        raise NotApplicable("declares no statistics")
    for name in subject.method.needs.statistics:
        _matters(subject, name)


def data(subject: Subject) -> None:
    """Other inputs, and other labels where they are declared, give another result."""
    if subject.method.needs.data == "none":
        raise NotApplicable("declares no data")
    _matters(subject, "inputs")
    if subject.method.needs.data == "labelled":
        _matters(subject, "labels")


def gradients(subject: Subject) -> None:
    """The models are run with gradients exactly if gradients are declared."""
    needs = subject.method.needs
    if needs.data == "none":
        raise NotApplicable("declares no data")
    case = subject.case()
    case.merge()
    flowed = any(case.forwards)
    if flowed and not needs.gradients:
        raise Failed("a model was differentiated, but needs.gradients is False")
    if needs.gradients and not flowed:
        raise Failed(
            f"needs.gradients is True, but none of {len(case.forwards)} forward passes "
            "had a graph"
        )


def limits(subject: Subject) -> None:
    """The declared numbers of experts are taken, others refused."""
    low, high = subject.method.needs.experts
    for count in {low, default_count(subject.method), high or low}:
        subject.case(experts=count).merge()
    for count in [low - 1, *([high + 1] if high else [])]:
        if count:
            case = subject.case(experts=count)
            try:
                case.merge()
            except MtkError:
                continue
            raise Failed(f"{count} experts are merged, but {low} to {high} declared")


def kinds(subject: Subject) -> None:
    """The declared kinds of checkpoint are taken, others refused."""
    for kind in _KINDS:
        declared = kind in subject.method.needs.checkpoints
        case = subject.case(kind=kind)
        try:
            case.merge()
        except MtkError as error:
            if declared:
                raise Failed(
                    f"{kind} checkpoints are declared but refused: {error}"
                ) from error
        else:
            if not declared:
                raise Failed(f"{kind} checkpoints are merged but not declared")


def task(subject: Subject) -> None:
    """A per-task result is used with its task known, and says so."""
    method = subject.method
    if method.output == "per_task" and not method.needs.task_at_inference:
        raise Failed("output is per_task, but needs.task_at_inference is False")
    if method.output != "per_task":
        raise NotApplicable(f"declares output {method.output}")


CHECKS = (
    Check(
        "needs.nothing-undeclared",
        "A method receives what it declares, so an undeclared input never arrives.",
        nothing_undeclared,
        ("declaration.targets",),
    ),
    Check(
        "needs.base",
        "A base that changes nothing is asked of the user in vain.",
        base,
        BASICS,
    ),
    Check(
        "needs.statistics",
        "Statistics cost passes over data; unused ones are asked in vain.",
        statistics,
        BASICS,
    ),
    Check(
        "needs.data",
        "Data are counted as a cost; unused ones are asked in vain.",
        data,
        BASICS,
    ),
    Check(
        "needs.gradients",
        "Gradients decide memory and time, and are printed with every result.",
        gradients,
        BASICS,
    ),
    Check(
        "needs.experts",
        "The planner skips or runs a method by its declared number of experts.",
        limits,
        BASICS,
    ),
    Check(
        "needs.checkpoints",
        "The planner skips or runs a method by its declared kinds of checkpoint.",
        kinds,
        BASICS,
    ),
    Check(
        "needs.task-at-inference",
        "Results that need to be told the task are not compared with those that do not.",
        task,
        BASICS,
    ),
)
