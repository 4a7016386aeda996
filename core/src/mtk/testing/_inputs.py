"""Checks with unusual models: shapes, counts, copies, magnitudes, and what is refused."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import MtkError
from mtk.testing._basics import BASICS
from mtk.testing._checks import Check, Failed, NotApplicable
from mtk.testing._compare import effect, shown
from mtk.testing._models import default_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtk.testing._checks import Subject
    from mtk.testing._models import Case

# Weights beyond these are outside what float16 holds, and no model has them.
_LARGE, _SMALL = 1e4, 1e-7


def _merged(case: Case, **params: Any) -> None:
    """Merge; every effect of the result is finite and has the base's shapes."""
    merged = case.merge(**params)
    for found in effect(merged):
        for name, tensor in found.items():
            if not bool(torch.isfinite(tensor).all()):
                raise Failed(f"{name!r} {shown(tensor)} holds NaN or infinity")
            if name in case.base and tensor.shape != case.base[name].shape:
                raise Failed(
                    f"{name!r} is {shown(tensor)}, not {shown(case.base[name])}"
                )


def extras(subject: Subject, *, names: Sequence[str]) -> None:
    """Tensors of an unusual shape are merged with the others."""
    _merged(subject.case(extras=tuple(names)))


def experts(subject: Subject, *, count: int) -> None:
    """The declared limits hold for this number of experts."""
    low, high = subject.method.needs.experts
    if count < low or (high is not None and count > high):
        limits = f"{low}" if low == high else f"{low} to {high or 'any number of'}"
        raise NotApplicable(f"declares {limits} experts")
    _merged(subject.case(experts=count))


def more_than_rank(subject: Subject) -> None:
    """Eight experts of matrices whose rank is three."""
    count = default_count(subject.method, 8)
    _merged(subject.case(experts=count, width=4, d_in=3, classes=3))


def equal_to_base(subject: Subject) -> None:
    """One expert equal to the base, then all of them."""
    _merged(subject.case().make_equal_to_base(0))
    _merged(subject.case().make_equal_to_base())


def identical(subject: Subject) -> None:
    """All experts the same."""
    _merged(subject.case().make_identical())


def low_rank(subject: Subject) -> None:
    """Task vectors that are products of low rank, and zero outside matrices."""
    if "lora" not in subject.method.needs.checkpoints:
        raise NotApplicable("declares no LoRA support")
    _merged(subject.case(kind="lora").make_low_rank())


def magnitudes(subject: Subject) -> None:
    """Very large and very small weights."""
    for factor in (_LARGE, _SMALL):
        _merged(subject.case().multiply(factor))


def missing_statistics(subject: Subject) -> None:
    """A tensor that no statistic reaches."""
    if not subject.method.needs.statistics:
        raise NotApplicable("declares no statistics")
    _merged(subject.case().drop_statistics("head.weight"))


def silent_statistics(subject: Subject) -> None:
    """Statistics of a feature that is always zero."""
    if not subject.method.needs.statistics:
        raise NotApplicable("declares no statistics")
    _merged(subject.case().silence_statistics())


def grid_values(subject: Subject) -> None:
    """Every grid value of every parameter, the others at their defaults."""
    method = subject.method
    tuned = [param for param in method.params if param.grid and param.stage == "merge"]
    if not tuned:
        raise NotApplicable("declares no grid")
    for param in tuned:
        for value in param.grid:
            _merged(subject.case(), **{param.name: value})


def _refused(case: Case, what: str) -> None:
    try:
        case.merge()
    except MtkError:
        return
    except Exception as error:
        raise Failed(
            f"{what}: {type(error).__name__} instead of an mtk error"
        ) from error
    raise Failed(f"{what}: merged without a word")


def bad_values(subject: Subject) -> None:
    """NaN and infinity in an expert."""
    for value in (math.nan, math.inf):
        case = subject.case()
        case.experts[-1]["hidden.bias"][1] = value
        number = f"float({str(value)!r})"
        case.recipe.append(f'case.experts[-1]["hidden.bias"][1] = {number}')
        _refused(case, f"{value} in the last expert's 'hidden.bias'")


def bad_shapes(subject: Subject) -> None:
    """A tensor of another shape in one model."""
    case = subject.case()
    if len(case.experts) == 1 and not subject.method.needs.base:
        raise NotApplicable("declares one expert and no base, so shapes cannot differ")
    model = case.experts[-1]
    model["hidden.weight"] = model["hidden.weight"][:, :5]
    case.recipe += [
        "model = case.experts[-1]",
        'model["hidden.weight"] = model["hidden.weight"][:, :5]',
    ]
    _refused(case, "'hidden.weight' (8, 5) in the last expert, (8, 6) elsewhere")


def bad_counters(subject: Subject) -> None:
    """Whole numbers that differ between the models."""
    case = subject.case(extras=("counter",))
    if len(case.experts) == 1 and not subject.method.needs.base:
        raise NotApplicable("declares one expert and no base, so nothing can differ")
    case.experts[-1]["norm.counter"] += 1
    case.recipe.append('case.experts[-1]["norm.counter"] += 1')
    _refused(case, "'norm.counter' 101 in the last expert, 100 elsewhere")


_CHECKS: tuple[tuple[str, str, Callable[[Subject], None]], ...] = (
    (
        "contract.scalar",
        "Learnt scales are tensors without dimensions.",
        partial(extras, names=("scalar",)),
    ),
    (
        "contract.convolution",
        "Convolutions have four dimensions.",
        partial(extras, names=("convolution",)),
    ),
    (
        "contract.empty",
        "Checkpoints may hold tensors without entries.",
        partial(extras, names=("empty",)),
    ),
    (
        "contract.one-expert",
        "A single expert is a valid request where no minimum is declared.",
        partial(experts, count=1),
    ),
    (
        "contract.two-experts",
        "Two experts are the commonest merge.",
        partial(experts, count=2),
    ),
    (
        "contract.five-experts",
        "A method without a declared maximum takes many experts.",
        partial(experts, count=5),
    ),
    (
        "contract.more-than-rank",
        "Small matrices have fewer directions than there are experts.",
        more_than_rank,
    ),
    (
        "contract.equal-to-base",
        "An expert equal to the base has a task vector of zeros to divide by.",
        equal_to_base,
    ),
    (
        "contract.identical-experts",
        "Copies of one expert have a spread of zero to divide by.",
        identical,
    ),
    (
        "contract.low-rank",
        "LoRA products have rank one or so, and all other singular values zero.",
        low_rank,
    ),
    (
        "contract.magnitudes",
        "Products of large and quotients of small weights leave float32's range.",
        magnitudes,
    ),
    (
        "contract.missing-statistics",
        "Statistics do not reach every tensor; those arrive as None.",
        missing_statistics,
    ),
    (
        "contract.silent-statistics",
        "Dead units give statistics with zeros to divide by.",
        silent_statistics,
    ),
    (
        "contract.grid-values",
        "The benchmark runs every declared grid value.",
        grid_values,
    ),
    (
        "contract.refuses-nan",
        "A damaged model must not be merged in silence.",
        bad_values,
    ),
    (
        "contract.refuses-shapes",
        "Tensors of different shapes must not be broadcast.",
        bad_shapes,
    ),
    (
        "contract.refuses-counters",
        "Whole numbers that differ have no right answer.",
        bad_counters,
    ),
)
CHECKS = tuple(Check(id_, why, run, BASICS) for id_, why, run in _CHECKS)
