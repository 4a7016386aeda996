"""A LoRA adapter seen as a full checkpoint: the base, with each update added when read.

A changed tensor is returned in float32 where the base has 16 bits, although ``info``
gives the base's dtype. The update is often smaller than the spacing of 16-bit numbers
around the weight, and would vanish if it were rounded here; the engine computes in
float32 anyway, and rounds its result once to the dtype that ``info`` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import torch

from mtk.errors import CheckpointError
from mtk_adapters_lora.adapter import flat_part
from mtk_adapters_lora.names import place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.declare import TensorInfo
    from mtk_adapters_lora.adapter import LoraAdapter, LoraModule

# Modules whose factors stay in memory: a few per thread that may work at a time.
_RECENT = 16


@dataclass(frozen=True, slots=True)
class Placed:
    """A module, the base's weight it changes, and whether that is stored transposed."""

    module: LoraModule
    weight: str
    transposed: bool


def place_modules(adapter: LoraAdapter, base: Checkpoint) -> dict[str, Placed]:
    """Module name -> where it goes; shapes and dtypes are checked."""
    where = place(adapter, base)
    ways = {
        name: _orientations(adapter, module, base.info(where[name]))
        for name, module in adapter.modules.items()
    }
    # Embeddings and convolutions say nothing about how linear layers are stored.
    clear = {
        way[0]
        for name, way in ways.items()
        if len(way) == 1
        and adapter.modules[name].kind == "linear"
        and len(base.info(where[name]).shape) == 2
    }
    result = {}
    for name, module in adapter.modules.items():
        way = ways[name]
        transposed = way[0] if len(way) == 1 else adapter.fan_in_fan_out
        if len(way) > 1 and clear and transposed not in clear:
            raise CheckpointError(
                f"{adapter.label}: {name!r} is square, and fan_in_fan_out contradicts "
                "the shapes of the other modules"
            )
        result[name] = Placed(module, where[name], transposed)
    return result


def _orientations(
    adapter: LoraAdapter, module: LoraModule, info: TensorInfo
) -> list[bool]:
    """[False] as stored, [True] transposed, both for a square matrix."""
    plain = (module.d_out, module.d_in)
    ways = []
    if module.kind == "embedding":
        ways = [True] if info.shape == plain[::-1] else []
    elif len(info.shape) > 2:
        flat = (info.shape[0], torch.Size(info.shape[1:]).numel())
        kernel = module.kernel or (1,) * (len(info.shape) - 2)
        ways = [False] if flat == plain and info.shape[2:] == kernel else []
    elif len(info.shape) == 2 and all(size == 1 for size in module.kernel):
        ways = [False] if info.shape == plain else []
        ways += [True] if info.shape == plain[::-1] and adapter.format == "peft" else []
    if not ways or not info.dtype.startswith(("float", "bfloat")):
        raise CheckpointError(
            f"{adapter.label}: the update of {module.name!r} is {plain}, the base's "
            f"{info.name!r} is {info.shape} of {info.dtype}"
        )
    return ways


class Products:
    """Base plus ``scale * B @ A``, tensor by tensor."""

    kind = "lora"

    def __init__(self, adapter: LoraAdapter, base: Checkpoint) -> None:
        self.label = adapter.label
        self.files = adapter.files
        self._adapter, self._base = adapter, base
        self._names = set(base.names())
        self._lock = Lock()
        self._recent: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] = {}
        placed = place_modules(adapter, base)
        self._changed = {item.weight: item for item in placed.values()}
        self._biases = self._find_biases(placed.values())
        self._whole = self._find_whole()

    def _find_biases(self, placed: Iterable[Placed]) -> dict[str, LoraModule]:
        biases = {}
        for item in placed:
            if item.module.bias:
                name = item.weight.removesuffix("weight") + "bias"
                self._same_shape(name, item.module.bias)
                biases[name] = item.module
        return biases

    def _find_whole(self) -> dict[str, str]:
        """Tensors that replace the base's: trained biases, ``modules_to_save``."""
        names, whole = self._names, {}
        prefixes = {
            weight.removesuffix(f"{item.module.name}.weight")
            for weight, item in self._changed.items()
        }
        prefix = prefixes.pop() if len(prefixes) == 1 else ""
        for name, key in self._adapter.whole.items():
            target = name if name in names else prefix + name
            self._same_shape(target, key)
            # peft stores the weight beneath a changed embedding; the update goes on top.
            if target in self._changed and ".base_layer." not in key:
                raise CheckpointError(
                    f"{self.label}: {target!r} is replaced and changed by factors as well"
                )
            whole[target] = key
        return whole

    def _same_shape(self, name: str, key: str) -> None:
        found = self._adapter.source.info(key).shape
        if name not in self._names:
            raise CheckpointError(
                f"{self.label}: {key!r} has no counterpart {name!r} in {self._base.label}"
            )
        if self._base.info(name).shape != found:
            raise CheckpointError(
                f"{self.label}: {key!r} is {found}, the base's {name!r} is "
                f"{self._base.info(name).shape}"
            )

    def names(self) -> Sequence[str]:
        """The names of the base."""
        return self._base.names()

    def info(self, name: str) -> TensorInfo:
        """Shape, role and dtype of the base's tensor."""
        return self._base.info(name)

    def changed(self) -> list[str]:
        """Names of all tensors that differ from the base, sorted."""
        return sorted({*self._changed, *self._biases, *self._whole})

    def replaced(self) -> dict[str, str]:
        """Names of the base's tensors that are stored whole -> the key that replaces them.

        Copies that are equal to the base's are left out; this reads them.
        """
        return {
            name: key
            for name, key in self._whole.items()
            if not _equal(self._adapter.read(key), self._base.read(name))
        }

    def read(self, name: str) -> Tensor:
        """The base's own tensor, or a wide one (float32, float64) with the update."""
        if not any(name in t for t in (self._whole, self._changed, self._biases)):
            return self._base.read(name)
        shape = self.info(name).shape
        return self.part(name, 0, torch.Size(shape).numel()).view(shape)

    def part(self, name: str, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end`` of :meth:`read`, counted flat.

        Only the rows that hold them are computed.
        """
        if name in self._biases:
            module = self._biases[name]
            assert module.bias is not None
            value = _widened(self._stored(name, start, end))
            added = self._adapter.read(module.bias).to(value.dtype).flatten()[start:end]
            return value + module.scale * added
        if name not in self._changed:
            return self._stored(name, start, end)
        placed, shape = self._changed[name], self.info(name).shape
        width = torch.Size(shape[1:]).numel()
        first, last = start // width, -(-end // width)
        if placed.transposed and placed.module.magnitude:  # norms over all rows
            first, last = 0, shape[0]
        rows = self._stored(name, first * width, last * width).view(-1, width)
        total = self._with_update(_widened(rows), placed, first)
        return total.flatten()[start - first * width : end - first * width]

    def _stored(self, name: str, start: int, end: int) -> Tensor:
        """What the update goes on top of: the base's tensor, or one stored whole."""
        if name not in self._whole:
            return flat_part(self._base, name, start, end)
        value = flat_part(self._adapter.source, self._whole[name], start, end)
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{self.label}: {self._whole[name]!r} contains NaN or infinity"
            )
        return _widened(value)

    def _with_update(self, rows: Tensor, placed: Placed, first: int) -> Tensor:
        """Rows of the stored weight from number ``first`` on, plus their update."""
        module = placed.module
        a, b = self._factors(module.name, rows.dtype)
        left, right = (a.T, b.T) if placed.transposed else (b, a)
        left = left[first : first + len(rows)]
        total = torch.addmm(rows, left, right, alpha=module.scale)
        if module.magnitude is not None:
            wanted = self._adapter.read(module.magnitude).to(total.dtype).flatten()
            if wanted.numel() != module.d_out:
                raise CheckpointError(
                    f"{self.label}: {module.magnitude!r} has {wanted.numel()} magnitudes "
                    f"for {module.d_out} rows"
                )
            if placed.transposed:
                total *= wanted / total.norm(dim=0)
            else:
                wanted = wanted[first : first + len(rows)]
                total *= (wanted / total.norm(dim=1))[:, None]
        return total

    def _factors(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B of a module; the last few are kept for the parts of large weights."""
        recent = self._recent.get((name, dtype))
        if recent is None:
            recent = self._adapter.factors(self._adapter.modules[name], dtype)
            with self._lock:
                while len(self._recent) >= _RECENT:
                    del self._recent[next(iter(self._recent))]
                self._recent[name, dtype] = recent
        return recent


def _widened(tensor: Tensor) -> Tensor:
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.to(wide)


def _equal(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.double(), two.double())
