"""A LoRA from a full fine-tune: the best low-rank approximation of each change.

For every linear weight, B A = the first ``rank`` singular triples of (tuned - base), by a
seeded randomised SVD (arXiv:0909.4061). What is lost is measured and reported: the error
per weight, and the changes of tensors that no factor can hold.

Both models are read in parts. Besides the new factors, memory holds a few float32 copies
of the weight that is being decomposed, however many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import CheckpointError, ParameterError
from mtk.folders import sha256
from mtk.randomness import stream
from mtk_adapters_lora.adapter import flat_part
from mtk_adapters_lora.lowrank import randomised
from mtk_adapters_lora.result import NewAdapter, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.declare import TensorInfo

    Model = Path | str | Mapping[str, Tensor] | Checkpoint
    Report = Callable[[str, float | None], None]

# Entries that are subtracted at a time.
_PART = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """An extraction as it was asked for, checked; no weight has been read.

    Args:
        only: patterns of weight names.
        fan_in_fan_out: the linear weights are stored as (d_in, d_out).
        inputs: the files it reads.
    """

    base: Checkpoint
    tuned: Checkpoint
    rank: int
    only: Sequence[str]
    seed: int
    fan_in_fan_out: bool
    inputs: Sequence[Path] = ()

    def covers(self, info: TensorInfo) -> bool:
        """Whether the change of this tensor becomes factors."""
        return (
            info.role == "linear"
            and info.name.endswith(".weight")
            and 0 not in info.shape
            and any(fnmatchcase(info.name, pattern) for pattern in self.only)
        )

    def describe(self) -> dict[str, Any]:
        """What the result may be, from headers only: unchanged weights are left out."""
        infos = [self.base.info(name) for name in self.base.names()]
        covered = [info for info in infos if self.covers(info)]
        sizes = [min(self.rank, *info.shape) * sum(info.shape) for info in covered]
        return {
            "base": self.base.label,
            "tuned": self.tuned.label,
            "rank": self.rank,
            "only": list(self.only),
            "modules": len(covered),
            "not_covered": sum(info.role != "buffer" for info in infos) - len(covered),
            "numbers": sum(sizes),
        }

    def run(self, report: Report | None = None) -> NewAdapter:
        """Go through the tensors once."""
        updates: dict[str, Update] = {}
        left_out: dict[str, float] = {}
        names = self.base.names()
        # One buffer for all weights: blocks of many sizes, taken and given back between
        # factors that stay, would leave holes that are never used again.
        sizes = [_size(i) for i in map(self.base.info, names) if self.covers(i)]
        buffer = torch.empty(max(sizes, default=0))
        for done, name in enumerate(names):
            info = self.base.info(name)
            if info.role == "buffer":
                continue
            if report is not None:
                report(f"extracting {name}", done / len(names))
            if not self.covers(info):
                change = _size_of_change(self.base, self.tuned, name)
                if change:
                    left_out[name] = change
                continue
            delta = _difference(self.base, self.tuned, info, buffer)
            if not bool(delta.any()):
                continue
            matrix = delta.T if self.fan_in_fan_out else delta  # (d_out, d_in)
            low = randomised(matrix, self.rank, stream(self.seed, "extract", name))
            updates[name.removesuffix(".weight")] = Update(
                a=low.a.clone(memory_format=torch.contiguous_format),
                b=low.b.clone(memory_format=torch.contiguous_format),
                error=low.error,
                norm=low.norm,
            )
        if not updates:
            raise CheckpointError(
                f"no linear weight of {self.tuned.label} that matches "
                f"{', '.join(self.only)} differs from {self.base.label}"
            )
        return self._result(updates, left_out)

    def _result(
        self, updates: Mapping[str, Update], left_out: Mapping[str, float]
    ) -> NewAdapter:
        notes = []
        if left_out:
            notes.append(
                f"{len(left_out)} changed tensors are not covered, for example "
                f"{max(left_out, key=lambda name: left_out[name])!r}"
            )
        made = {"rank": self.rank, "seed": self.seed, "only": list(self.only)}
        return NewAdapter(
            updates=updates,
            fan_in_fan_out=self.fan_in_fan_out,
            file_format="diffusers" if any("/" in name for name in updates) else "peft",
            notes=notes,
            left_out=left_out,
            inputs=self.inputs,
            provenance={
                "extract": made,
                "base": self.base.label,
                "tuned": self.tuned.label,
                "left_out": left_out,
                "inputs": {str(file): sha256(file) for file in self.inputs},
            },
        )


def extract(
    base: Model,
    tuned: Model,
    rank: int = 16,
    *,
    only: Sequence[str] = ("*",),
    seed: int = 0,
    fan_in_fan_out: bool | None = None,
) -> NewAdapter:
    """Approximate ``tuned - base`` by an adapter; arguments as for :func:`prepare`.

    Returns:
        The adapter, with ``relative_error`` over the weights it covers, and ``left_out``.
    """
    return prepare(
        base, tuned, rank, only=only, seed=seed, fan_in_fan_out=fan_in_fan_out
    ).run()


def prepare(
    base: Model,
    tuned: Model,
    rank: int = 16,
    *,
    only: Sequence[str] = ("*",),
    seed: int = 0,
    fan_in_fan_out: bool | None = None,
) -> Extraction:
    """Open both models and check that they fit together; read no weight.

    Args:
        base: path, state dict or open checkpoint.
        tuned: the same, with the names and shapes of the base.
        rank: of every weight (less where a side of the weight is shorter).
        only: patterns of weight names.
        seed: of the randomised SVD; small weights are decomposed exactly.
        fan_in_fan_out: whether linear weights are stored as (d_in, d_out), as in GPT-2.
            Read off the lengths of the biases when left out.
    """
    if type(rank) is not int or rank < 1:
        raise ParameterError(f"rank is {rank!r}; it is a whole number of at least 1")
    from mtk.loading import load
    from mtk.opening import open_input

    registry = load()
    start = open_input(base, "base", registry)
    end = open_input(tuned, "tuned", registry, start.checkpoint)
    first, second = start.checkpoint, end.checkpoint
    _check_alike(first, second)
    names = first.names()
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise CheckpointError(f"no tensor of {first.label} matches {pattern!r}")
    if fan_in_fan_out is None:
        fan_in_fan_out = _is_transposed(first)
    return Extraction(
        base=first,
        tuned=second,
        rank=rank,
        only=tuple(only),
        seed=seed,
        fan_in_fan_out=fan_in_fan_out,
        inputs=[*start.files(), *end.files()],
    )


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


def _changes(
    base: Checkpoint, tuned: Checkpoint, name: str
) -> Iterator[tuple[int, Tensor]]:
    """The change part by part, subtracted in the wider of float32 and their own dtypes."""
    size = _size(base.info(name))
    for start in range(0, size, _PART):
        end = min(start + _PART, size)
        one, two = (flat_part(model, name, start, end) for model in (base, tuned))
        wide = torch.promote_types(
            torch.promote_types(one.dtype, two.dtype), torch.float32
        )
        delta = (two.to(wide) - one.to(wide)).float()
        if not bool(torch.isfinite(delta).all()):
            raise CheckpointError(
                f"{name!r} contains NaN or infinity in {base.label} or {tuned.label}"
            )
        yield start, delta


def _difference(
    base: Checkpoint, tuned: Checkpoint, info: TensorInfo, buffer: Tensor
) -> Tensor:
    """The whole change, in ``buffer``."""
    for start, delta in _changes(base, tuned, info.name):
        buffer[start : start + len(delta)] = delta
    return buffer[: _size(info)].view(info.shape)


def _size(info: TensorInfo) -> int:
    return torch.Size(info.shape).numel()


def _size_of_change(base: Checkpoint, tuned: Checkpoint, name: str) -> float:
    """The Frobenius norm of a change that is not needed itself."""
    squares = [
        float(delta.double().square().sum()) for _, delta in _changes(base, tuned, name)
    ]
    return math.sqrt(sum(squares))


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
