"""Checks of the invariants that a method declares; the others are not its promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk import engine
from mtk.randomness import Random
from mtk.testing._basics import BASICS
from mtk.testing._checks import Check, NotApplicable
from mtk.testing._compare import close, effect, linear_outputs, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtk.results import Merged
    from mtk.testing._checks import Subject


def symmetric(subject: Subject) -> None:
    """Experts in another order, with all that is theirs, give the same result."""
    if not subject.method.symmetric:
        raise NotApplicable("declares that the order of the experts matters")
    count = len(subject.case().experts)
    if count < 2:
        raise NotApplicable("declares one expert")
    order = [*range(1, count), 0]
    plain = subject.case().merge()
    with setting(engine, Random=_permuted(order)):
        other = subject.case().permute(*order).merge()
    if subject.method.stochastic:
        subject.cases[-1].recipe.append(
            "# with each expert's random stream moved along"
        )
    wanted = effect(plain)
    if subject.method.output == "per_task":
        wanted = [wanted[i] for i in order]
    for one, two in zip(effect(other), wanted, strict=True):
        close(one, two, f"experts in the order {order}, against the first order")


def _permuted(order: list[int]) -> type[Random]:
    """Random streams that follow their experts."""

    class Permuted(Random):
        def generator(self, expert: int | None = None) -> torch.Generator:
            return super().generator(None if expert is None else order[expert])

    return Permuted


def idempotent(subject: Subject) -> None:
    """Copies of one expert give that expert."""
    if not subject.method.idempotent:
        raise NotApplicable("does not declare that identical experts give that expert")
    case = subject.case().make_identical()
    _gives(case.merge(), case.experts[0], "identical experts, against that expert")


def identity_at_zero(subject: Subject) -> None:
    """Experts equal to the base give the base."""
    if not subject.method.identity_at_zero:
        raise NotApplicable("does not declare that task vectors of zero give the base")
    case = subject.case().make_equal_to_base()
    _gives(case.merge(), case.base, "experts equal to the base, against the base")


def _gives(merged: Merged, state: dict[str, Tensor], what: str) -> None:
    wanted = state
    if merged.method.output == "routed":
        wanted = linear_outputs(state, merged)
    for found in effect(merged):
        close(found, wanted, what)


CHECKS = (
    Check(
        "invariants.symmetric",
        "A declared symmetric method must not depend on the order of the experts.",
        symmetric,
        BASICS,
    ),
    Check(
        "invariants.idempotent",
        "A declared idempotent method returns what all experts agree on.",
        idempotent,
        BASICS,
    ),
    Check(
        "invariants.identity-at-zero",
        "Where nothing was learnt there is nothing to merge.",
        identity_at_zero,
        BASICS,
    ),
)
