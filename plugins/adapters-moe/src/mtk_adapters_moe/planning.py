"""What an upcycled model consists of: every tensor, and how it is made in its turn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mtk.checkpoint import describe
from mtk.errors import CheckpointError, ParameterError
from mtk.randomness import stream
from mtk_adapters_moe import donors, families
from mtk_adapters_moe.donors import EMBEDDINGS, check_donor, check_expert, open_dense
from mtk_adapters_moe.families import PROJECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.declare import TensorInfo
    from mtk_adapters_moe.donors import Dense, Model
    from mtk_adapters_moe.families import Family

    Tensors = dict[str, tuple[TensorInfo, Callable[[], Tensor]]]

# Inner width of the shared expert that a class wants and nobody gave: its output is zero.
_EMPTY_WIDTH = 64
_FLOATS = ("float32", "bfloat16", "float16")


class Plan:
    """All tensors of the result, and how each is made when its turn comes."""

    def __init__(
        self,
        donor: Path,
        experts: Sequence[Model],
        shared: Model | None,
        family: str | None,
        params: dict[str, Any],
        dtype: str | None,
    ) -> None:
        if len(experts) < params["top_k"]:
            raise ParameterError(
                f"upcycle: top_k is {params['top_k']}, but there are {len(experts)} "
                "experts"
            )
        self.path, self.params = donor, params
        self.donor = open_dense(donor, "the donor")
        self.donor_config = families.donor_config(donor)
        kind = self.donor_config["model_type"]
        self.family: Family = families.choose(family, kind, shared=shared is not None)
        check_donor(self.donor, self.family)
        self.experts = [open_dense(e, f"expert {i}") for i, e in enumerate(experts)]
        self.shared = None if shared is None else open_dense(shared, "shared expert")
        for i, expert in enumerate(self.experts):
            check_expert(expert, self.donor, f"expert {i}", shared=False)
        if self.shared is not None:
            check_expert(self.shared, self.donor, "shared expert", shared=True)
        self.dtype = dtype or self.donor.source.info(EMBEDDINGS).dtype
        if self.dtype not in _FLOATS:
            raise ParameterError(
                f"upcycle: dtype is {self.dtype}; write one of {', '.join(_FLOATS)}"
            )
        self.tensors: Tensors = {}
        self.warnings: list[str] = []
        self._warn()

    @property
    def inputs(self) -> list[Dense]:
        """Donor, experts and shared expert."""
        return [self.donor, *self.experts, *([self.shared] if self.shared else [])]

    def _warn(self) -> None:
        count = len(self.experts)
        if count & (count - 1):
            self.warnings.append(
                f"{count} experts are no power of two, which some programs need"
            )
        if families.slides(self.donor_config):
            self.warnings.append(
                "the donor's attention looks back over a window of "
                f"{self.donor_config['sliding_window']} tokens; the result's does not"
            )
        for i, expert in enumerate(self.experts):
            if not donors.same_vocabulary(self.donor, expert):
                self.warnings.append(
                    f"expert {i} has another vocabulary than the donor, whose embeddings "
                    "and tokenizer are kept"
                )

    def config(self) -> dict[str, Any]:
        """The configuration of the result."""
        family, donor = self.family, self.donor
        own = {
            family.count: len(self.experts),
            family.width: donor.inner,
            "num_experts_per_tok": self.params["top_k"],
            "vocab_size": donor.source.info(EMBEDDINGS).shape[0],
            "dtype": self.dtype,
        }
        if family.shared:
            own["shared_expert_intermediate_size"] = self.shared_width
        names = donor.source.names()
        return families.moe_config(family, self.donor_config, names, own=own)

    @property
    def shared_width(self) -> int:
        """Inner width of the shared expert."""
        if self.shared is not None:
            return self.shared.inner
        return min(_EMPTY_WIDTH, self.donor.inner)

    def add_all(
        self,
        rows: dict[str, Tensor],
        shared_rows: dict[str, Tensor],
        shared_scale: float,
    ) -> None:
        """Put every tensor of the result on the list."""
        donor, mlp = self.donor, set(self.donor.mlp.values())
        for name in donor.source.names():
            if name not in mlp:
                shape = donor.source.info(name).shape
                self._add(name, shape, partial(donor.source.read, name))
        for i, expert in enumerate(self.experts):
            for (layer, part), name in expert.mlp.items():
                target = self.family.expert(layer, i, part)
                shape = expert.source.info(name).shape
                self._add(target, shape, partial(self._mlp, i, name, target))
        for name, matrix in rows.items():
            self._add(name, tuple(matrix.shape), partial(_itself, matrix))
        if self.family.shared:
            self._add_shared(shared_rows, shared_scale)

    def _add_shared(self, rows: dict[str, Tensor], scale: float) -> None:
        width, inner = self.donor.width, self.shared_width
        for layer in self.donor.layers:
            for part in PROJECTIONS:
                target = self.family.shared_expert(layer, part)
                shape = (width, inner) if part == "down_proj" else (inner, width)
                if self.shared is None:
                    self._add(target, shape, partial(torch.zeros, shape))
                    continue
                read = partial(self.shared.source.read, self.shared.mlp[layer, part])
                factor = scale if part == "down_proj" else 1.0
                self._add(target, shape, partial(_scaled, read, factor))
            gate = rows.get(layer, torch.zeros(1, width))
            name = self.family.shared_gate(layer)
            self._add(name, (1, width), partial(_itself, gate))

    def _add(
        self, name: str, shape: tuple[int, ...], make: Callable[[], Tensor]
    ) -> None:
        dtype: torch.dtype = getattr(torch, self.dtype)
        if name in self.tensors:
            raise CheckpointError(f"upcycle: {name!r} would be written twice")
        info = replace(describe(name, shape, dtype), dtype=self.dtype)
        self.tensors[name] = info, make

    def _mlp(self, expert: int, name: str, target: str) -> Tensor:
        """One weight of an expert, with its noise and its scale."""
        tensor = self.experts[expert].source.read(name)
        noise = _of(self.params["noise_scale"], expert)
        if noise:
            generator = stream(self.params["seed"], expert, target)
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor = tensor.float() + noise * drawn
        scale = _of(self.params["residual_scale"], expert)
        if scale != 1.0 and name.endswith("down_proj.weight"):
            tensor = tensor.float() * scale
        return tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _scaled(read: Callable[[], Tensor], factor: float) -> Tensor:
    return read().float() * factor


def _of(value: float | list[float], expert: int) -> float:
    return value[expert] if isinstance(value, list) else value
