"""Merging models whose tokenizers differ: which row of an embedding is which token.

A plan says, for every row of the result, which row of each model it is. A model that
lacks a token gets the base's row for it; where the base lacks it too, the mean of the
models that have it. So the task vector of a model that lacks a token is zero there, and
an average is never drawn towards rows that nobody trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from mtk._rows import MISSING, Rows
from mtk.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["POLICIES", "Plan", "Rows", "Vocabulary", "plan"]
POLICIES = ("refuse", "base", "union")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a model's tokenizer and embeddings say.

    Args:
        tokens: token -> id.
        rows: of the embeddings; often more than there are tokens.
        tensors: names of the tensors with one row per token.
    """

    tokens: Mapping[str, int]
    rows: int
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rows of a merged vocabulary.

    Args:
        tokens: token -> id in the result.
        rows: of the result's embeddings.
        tensors: that have these rows.
        maps: for each model, the row of its own for each row of the result, or -1.
        added: tokens to append to the donor's tokenizer -> their ids.
        base: the model, by number, that fills the gaps of the others.
    """

    tokens: Mapping[str, int]
    rows: int
    tensors: tuple[str, ...]
    maps: tuple[Tensor, ...]
    added: Mapping[str, int] = field(default_factory=dict)
    base: int | None = None


def plan(
    vocabularies: Sequence[Vocabulary | None],
    labels: Sequence[str],
    *,
    policy: str = "refuse",
    base: int | None = None,
    donor: Vocabulary | None = None,
) -> Plan | None:
    """How to bring several models to one vocabulary; None where nothing has to be done.

    Args:
        vocabularies: of the models, in the order of the merge. None where a model has no
            tokenizer: it then cannot take part in ``base`` and ``union``.
        labels: of the models, for messages.
        policy: ``refuse`` any difference, take the donor's tokens (``base``), or those
            and then everything that the others have besides (``union``).
        base: number of the model that is the common starting model.
        donor: gives order and ids; the base, or else the first model, when left out.

    Raises:
        CheckpointError: the vocabularies differ, or cannot be brought together.
        UsageError: there is no such policy.
    """
    if policy not in POLICIES:
        raise UsageError(
            f"no vocabulary policy {policy!r}; choose one of {', '.join(POLICIES)}"
        )
    known = [
        (vocabulary, label)
        for vocabulary, label in zip(vocabularies, labels, strict=True)
        if vocabulary is not None
    ]
    target = donor or vocabularies[base or 0]
    if not known or target is None:
        if policy == "refuse":
            return None
        raise _unknown(vocabularies, labels)
    first = known[0]
    if all(_equal(vocabulary, target) for vocabulary, _ in known):
        return None
    if policy == "refuse":
        other = next((v, n) for v, n in known if not _equal(v, target))
        same = [label for vocabulary, label in known if _equal(vocabulary, target)]
        reference = (target, same[0] if same else "the donor")
        raise CheckpointError(_difference(reference, other))
    if len(known) < len(vocabularies):
        raise _unknown(vocabularies, labels)
    for vocabulary, label in known:
        if vocabulary.tensors != first[0].tensors:
            odd = min(set(vocabulary.tensors) ^ set(first[0].tensors))
            raise CheckpointError(
                f"{odd!r} has one row per token in only one of {first[1]} and {label}\n"
                "Their vocabularies cannot be brought together"
            )
    models = [vocabulary for vocabulary, _ in known]
    return _planned(models, target, union=policy == "union", base=base)


def _unknown(
    vocabularies: Sequence[Vocabulary | None], labels: Sequence[str]
) -> CheckpointError:
    lacking = [n for v, n in zip(vocabularies, labels, strict=True) if v is None]
    who = lacking[0] if lacking else "the donor"
    return CheckpointError(
        f"{who} has no tokenizer files, so its tokens are not known\n"
        "Only models with tokenizers can be merged under this vocabulary policy"
    )


def _equal(one: Vocabulary, two: Vocabulary) -> bool:
    return one.rows == two.rows and one.tokens == two.tokens


def _difference(one: tuple[Vocabulary, str], two: tuple[Vocabulary, str]) -> str:
    (first, here), (second, there) = one, two
    if first.tokens == second.tokens:
        what = f"{first.rows} rows of embeddings in {here}, {second.rows} in {there}"
    else:
        ids = {**second.tokens, **first.tokens}  # in the order of the first one's ids
        odd = min(
            (t for t in ids if first.tokens.get(t) != second.tokens.get(t)),
            key=lambda token: (ids[token], token),
        )
        places = [
            f"the id {found.tokens[odd]} in {label}"
            if odd in found.tokens
            else f"none in {label}"
            for found, label in (one, two)
        ]
        what = f"the token {odd!r} has {places[0]}, {places[1]}"
    return f"vocabularies differ: {what}\nChoose --vocabulary base or union"


def _planned(
    models: Sequence[Vocabulary], donor: Vocabulary, *, union: bool, base: int | None
) -> Plan:
    """The result's tokens and, for each model, its rows."""
    tokens = {t: n for t, n in donor.tokens.items() if n < donor.rows or union}
    last = max(tokens.values(), default=-1)
    added: dict[str, int] = {}
    for model in models if union else ():
        for token, number in sorted(model.tokens.items(), key=lambda pair: pair[1]):
            if token not in tokens and number < model.rows:
                last += 1
                tokens[token] = added[token] = last
    wanted = max(donor.rows, last + 1)
    maps = [_rows(model, tokens, wanted) for model in models]
    owned = torch.stack(maps).max(dim=0).values >= 0
    named = torch.zeros(wanted, dtype=torch.bool)
    named[list(tokens.values())] = True
    lost = (named & ~owned).nonzero()
    if len(lost):
        token = next(t for t, n in tokens.items() if n == int(lost[0]))
        raise CheckpointError(
            f"no model has a row for the token {token!r} of the donor's tokenizer"
        )
    # Padding ends where no model has any; nothing would say what to put there.
    gaps = (~owned).nonzero().flatten().tolist()
    if gaps and gaps[0] < last:
        raise CheckpointError(
            f"no model has anything for row {gaps[0]} of the merged vocabulary, which is "
            "no token"
        )
    rows = gaps[0] if gaps else wanted
    return Plan(
        tokens=tokens,
        rows=rows,
        tensors=models[0].tensors,
        maps=tuple(found[:rows] for found in maps),
        added=added,
        base=base,
    )


def _rows(model: Vocabulary, tokens: Mapping[str, int], rows: int) -> Tensor:
    """For each row of the result the row of a model; its padding stays where it is."""
    found = torch.full((rows,), MISSING, dtype=torch.int64)
    named = torch.zeros(rows, dtype=torch.bool)
    named[list(tokens.values())] = True
    spare = torch.arange(min(rows, model.rows))
    taken = torch.zeros(len(spare), dtype=torch.bool)
    taken[[n for n in model.tokens.values() if n < len(spare)]] = True
    spare = spare[~taken & ~named[: len(spare)]]
    found[spare] = spare
    shared = [
        (number, model.tokens[token])
        for token, number in tokens.items()
        if model.tokens.get(token, model.rows) < model.rows
    ]
    if shared:
        there, here = torch.tensor(shared).T
        found[there] = here
    return found
