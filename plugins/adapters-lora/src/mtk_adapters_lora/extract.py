"""A LoRA from a full fine-tune: the best low-rank approximation of each change.

For every linear weight, B A = the first ``rank`` singular triples of (tuned - base), by a
seeded randomised SVD (arXiv:0909.4061). What is lost is measured and reported: the error
per weight, and the changes of tensors that no factor can hold.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import CheckpointError, ParameterError
from mtk.randomness import stream
from mtk_adapters_lora.lowrank import randomised
from mtk_adapters_lora.result import NewAdapter, Update

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.adapters import Checkpoint

    Model = Path | str | Mapping[str, Tensor] | Checkpoint


def extract(
    base: Model,
    tuned: Model,
    rank: int = 16,
    *,
    only: Sequence[str] = ("*",),
    seed: int = 0,
    fan_in_fan_out: bool | None = None,
) -> NewAdapter:
    """Approximate ``tuned - base`` by an adapter of the given rank.

    Args:
        base: path, state dict or open checkpoint.
        tuned: the same, with the names and shapes of the base.
        rank: of every weight (less where a side of the weight is shorter).
        only: patterns of weight names.
        seed: of the randomised SVD; small weights are decomposed exactly.
        fan_in_fan_out: whether linear weights are stored as (d_in, d_out), as in GPT-2.
            Read off the lengths of the biases when left out.

    Returns:
        The adapter, with ``relative_error`` over the weights it covers, and ``left_out``.
    """
    if type(rank) is not int or rank < 1:
        raise ParameterError(f"rank is {rank!r}; it is a whole number of at least 1")
    first, second = _open(base, "base"), _open(tuned, "tuned")
    _check_alike(first, second)
    if fan_in_fan_out is None:
        fan_in_fan_out = _is_transposed(first)
    updates: dict[str, Update] = {}
    left_out: dict[str, float] = {}
    for name in first.names():
        info = first.info(name)
        if info.role == "buffer":
            continue
        delta = _difference(first, second, name)
        if not bool(delta.any()):
            continue
        fits = info.role == "linear" and name.endswith(".weight")
        if not (fits and any(fnmatchcase(name, pattern) for pattern in only)):
            left_out[name] = float(torch.linalg.vector_norm(delta))
            continue
        matrix = delta.T if fan_in_fan_out else delta  # (d_out, d_in)
        low = randomised(matrix, rank, stream(seed, "extract", name))
        updates[name.removesuffix(".weight")] = Update(
            a=low.a.contiguous(), b=low.b.contiguous(), error=low.error, norm=low.norm
        )
    if not updates:
        raise CheckpointError(
            f"no linear weight of {second.label} that matches {', '.join(only)} differs "
            f"from {first.label}"
        )
    new = NewAdapter(
        updates=updates,
        fan_in_fan_out=fan_in_fan_out,
        left_out=left_out,
        provenance={"extract": {"rank": rank, "seed": seed, "only": list(only)}},
    )
    new.provenance = {
        **new.provenance,
        "base": first.label,
        "tuned": second.label,
        "relative_error": new.relative_error,
        "left_out": left_out,
    }
    if left_out:
        new.notes.append(
            f"{len(left_out)} changed tensors are not covered, for example "
            f"{max(left_out, key=lambda name: left_out[name])!r}"
        )
    return new


def _open(model: Model, label: str) -> Checkpoint:
    from mtk.loading import load
    from mtk.merging import open_model

    return open_model(model, label, load())


def _check_alike(base: Checkpoint, tuned: Checkpoint) -> None:
    odd = set(base.names()) ^ set(tuned.names())
    if odd:
        raise CheckpointError(
            f"{min(odd)!r} is in only one of {base.label} and {tuned.label}\n"
            f"({len(odd)} such tensors in all)"
        )
    for name in base.names():
        one, two = base.info(name), tuned.info(name)
        if one.shape != two.shape or (one.role == "buffer") != (two.role == "buffer"):
            raise CheckpointError(
                f"{name!r} is {one.shape} of {one.dtype} in {base.label}, {two.shape} of "
                f"{two.dtype} in {tuned.label}"
            )


def _difference(base: Checkpoint, tuned: Checkpoint, name: str) -> Tensor:
    """The change, subtracted in the wider of float32 and their own dtypes."""
    one, two = base.read(name), tuned.read(name)
    wide = torch.promote_types(torch.promote_types(one.dtype, two.dtype), torch.float32)
    delta = (two.to(wide) - one.to(wide)).float()
    if not bool(torch.isfinite(delta).all()):
        raise CheckpointError(
            f"{name!r} contains NaN or infinity in {base.label} or {tuned.label}"
        )
    return delta


def _is_transposed(base: Checkpoint) -> bool:
    """A bias has d_out entries: does that fit the first or the second side?"""
    names, votes = set(base.names()), set()
    for name in names:
        info: Any = base.info(name)
        bias = name.removesuffix("weight") + "bias"
        if info.role != "linear" or info.shape[0] == info.shape[1] or bias not in names:
            continue
        length = base.info(bias).shape
        if length in (info.shape[:1], info.shape[1:]):
            votes.add(length == info.shape[1:])
    if len(votes) > 1:
        raise CheckpointError(
            f"{base.label}: some linear weights are stored transposed, some not\n"
            "Choose weights of one kind with only=, and say fan_in_fan_out="
        )
    return votes == {True}
