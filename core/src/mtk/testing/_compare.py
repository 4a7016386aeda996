"""Comparing merges: byte by byte where that is promised, else within a tolerance."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from mtk.checkpoint import describe
from mtk.loading import resolve
from mtk.randomness import stream
from mtk.testing._checks import Differs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from mtk.results import Merged

# Differences below this share of a tensor's largest entry are float32 sums in another
# order; the smallest change a method could mean by default parameters is far above.
TOLERANCE = 1e-4


def stored(merged: Merged) -> dict[str, Tensor]:
    """Every tensor a result holds, as it would be stored."""
    flat = dict(merged.tensors)
    for i, codes in enumerate(merged.codes):
        for name, parts in codes.items():
            flat |= {f"code {i} {part} of {name}": t for part, t in parts.items()}
    for name, parts in merged.routing.items():
        flat |= {f"routing {part} of {name}": tensor for part, tensor in parts.items()}
    return flat


def effect(merged: Merged) -> list[dict[str, Tensor]]:
    """What a result does: one entry per task, or one.

    A linear layer of a routed result is represented by its outputs on random inputs.
    """
    if merged.method.output == "per_task":
        return [merged.task(i) for i in range(len(merged.codes))]
    if merged.method.output == "static":
        return [merged.tensors]
    return [linear_outputs(merged.tensors, merged)]


def linear_outputs(state: Mapping[str, Tensor], merged: Merged) -> dict[str, Tensor]:
    """``state`` with the layers that ``merged`` routes replaced by outputs.

    Routing is added only to ``merged``'s own tensors; any other state is run plainly.
    """
    found = dict(state)
    route = resolve(merged.method.route)
    for weight in routed_layers(merged):
        w = found.pop(weight).float()
        bias = weight.removesuffix("weight") + "bias"
        b = found.pop(bias).float() if bias in found else None
        x = torch.randn(16, w.shape[1], generator=stream(0, "inputs", weight))
        y = F.linear(x, w, b)  # (16, d_out)
        if state is merged.tensors and weight in merged.routing:
            y = y + route(x=x, parts=merged.routing[weight], **merged.params)
        found[f"outputs of {weight}"] = y
    return found


def routed_layers(merged: Merged) -> list[str]:
    """Weights of the linear layers of a result."""
    return [
        name
        for name, tensor in merged.tensors.items()
        if describe(name, tensor.shape, tensor.dtype).role == "linear"
    ]


def same_bytes(one: Mapping[str, Tensor], two: Mapping[str, Tensor], what: str) -> None:
    """Fail unless names, shapes, dtypes and bytes are equal."""
    _same_names(one, two, what)
    for name, a in one.items():
        if not equal_bytes(a, two[name]):
            raise Differs(f"{what}: {_difference(name, a, two[name])}")


def equal_bytes(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and bytes; so -0.0 differs from 0.0, and NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    one, two = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one, two)


def close(
    one: Mapping[str, Tensor],
    two: Mapping[str, Tensor],
    what: str,
    tolerance: float = TOLERANCE,
) -> None:
    """Fail unless all entries agree within a share of each tensor's largest entry."""
    _same_names(one, two, what)
    for name, a in one.items():
        b = two[name]
        if a.shape != b.shape:
            raise Differs(f"{what}: {_difference(name, a, b)}")
        gap = (a.double() - b.double()).abs()
        size = b.double().abs().max() if b.numel() else torch.zeros(())
        if not bool((gap <= tolerance * size).all()):
            raise Differs(f"{what}: {_difference(name, a, b)}")


def _same_names(
    one: Mapping[str, Tensor], two: Mapping[str, Tensor], what: str
) -> None:
    if set(one) != set(two):
        odd = min(set(one) ^ set(two))
        place = "only in the first" if odd in one else "only in the second"
        raise Differs(f"{what}: {odd!r} is {place}")


def _difference(name: str, a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{name!r} is {shown(a)}, not {shown(b)}"
    gap = (a.double() - b.double()).abs().reshape(-1)
    worst = int(gap.nan_to_num(float("inf")).argmax())
    return (
        f"{name!r} {shown(a)}: {int((gap != 0).sum())} of {gap.numel()} entries differ, "
        f"the largest by {gap[worst]:.3g}: {a.reshape(-1)[worst]:.7g}, "
        f"not {b.reshape(-1)[worst]:.7g}"
    )


def shown(tensor: Tensor) -> str:
    """Shape and dtype, as messages give them."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@contextmanager
def setting(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of a module set to other values for the length of a block."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
