"""Small models to merge: drawn anew for every check, and described by the code for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtk.checkpoint import StateDict
from mtk.live import LiveTask
from mtk.loading import Registry, load
from mtk.merging import merge
from mtk.testing._drawing import (
    TASK_VECTOR,
    add_task_vector,
    copied,
    draw,
    draw_inputs,
    draw_model,
    draw_statistic,
    scattered,
    shapes_of,
)
from mtk.testing._network import Network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtk.declare import Method
    from mtk.results import Merged

    State = dict[str, Tensor]

# Parameters that say how long a model-scope method runs; checks need no convergence.
_LENGTHS = ("steps", "iterations", "epochs")
_SHORT = 3
# Fewer inputs than any usual batch: every batch holds all of them, so that the order in
# which several tasks draw from one stream changes nothing.
_INPUTS = 12


class _Checkpoint(StateDict):
    """A state dict that says of which kind it is."""

    def __init__(self, tensors: State, label: str, kind: str) -> None:
        super().__init__(tensors, label)
        self.kind = kind


@dataclass(slots=True)
class Case:
    """Models, statistics and task data for one merge, and the code that made them.

    Every method that changes a case adds a line to ``recipe``.
    """

    method: Method
    base: State
    experts: list[State]
    statistics: dict[str, list[State]]
    inputs: list[Tensor]
    labels: list[Tensor]
    kind: str = "full"
    recipe: list[str] = field(default_factory=list)
    forwards: list[bool] = field(default_factory=list)

    @property
    def models(self) -> list[State]:
        """Base and experts."""
        return [self.base, *self.experts]

    def merge(self, **params: Any) -> Merged:
        """Merge, with default parameters where none are given."""
        self._log("merge", **params)
        needs = self.method.needs
        return merge(
            self.method,
            experts=[self._open(m, f"expert {i}") for i, m in enumerate(self.experts)],
            base=self._open(self.base, "base") if needs.base else None,
            params=short_lengths(self.method) | params,
            statistics=self.statistics,
            tasks=self.tasks() if needs.data != "none" else (),
            registry=Registry(),
        )

    def tasks(self) -> list[LiveTask]:
        """One live task per expert; ``forwards`` records whether gradients flowed."""

        def forward(module: nn.Module, x: Tensor) -> Tensor:
            logits: Tensor = module(x.to(next(module.parameters()).dtype))
            self.forwards.append(logits.requires_grad)
            return logits

        labelled = self.method.needs.data == "labelled"
        return [
            LiveTask(
                name=f"task{i}",
                module=Network(self.base).eval().requires_grad_(False),
                forward=forward,
                inputs=x,
                labels=y if labelled else None,
            )
            for i, (x, y) in enumerate(zip(self.inputs, self.labels, strict=True))
        ]

    def convert(self, dtype: str) -> Case:
        """All floating-point tensors of all models in another dtype."""
        for model in self.models:
            for name, tensor in model.items():
                if tensor.is_floating_point():
                    model[name] = tensor.to(getattr(torch, dtype))
        return self._log("convert", dtype)

    def permute(self, *order: int) -> Case:
        """Experts, their statistics and their tasks in another order."""
        self.experts = [self.experts[i] for i in order]
        self.inputs = [self.inputs[i] for i in order]
        self.labels = [self.labels[i] for i in order]
        self.statistics = {
            name: [files[i] for i in order] for name, files in self.statistics.items()
        }
        return self._log("permute", *order)

    def make_identical(self) -> Case:
        """All experts equal to the first; statistics and tasks stay different."""
        self.experts = [copied(self.experts[0]) for _ in self.experts]
        return self._log("make_identical")

    def make_equal_to_base(self, *experts: int) -> Case:
        """These experts, or all if none are named, equal to the base."""
        for i in experts or range(len(self.experts)):
            self.experts[i] = copied(self.base)
        return self._log("make_equal_to_base", *experts)

    def make_low_rank(self) -> Case:
        """Experts that differ from the base by products of rank one, in matrices only."""
        for i, expert in enumerate(self.experts):
            for name, base in self.base.items():
                expert[name] = base.clone()
                if base.ndim == 2 and base.numel():
                    b = draw((base.shape[0], 1), "b", i, name)
                    a = draw((1, base.shape[1]), "a", i, name)
                    expert[name] += TASK_VECTOR * (b @ a).to(base.dtype)
        return self._log("make_low_rank")

    def make_non_contiguous(self) -> Case:
        """The same values in transposed or strided memory."""
        for model in self.models:
            for name, tensor in model.items():
                model[name] = scattered(tensor)
        return self._log("make_non_contiguous")

    def keep(self, *names: str) -> Case:
        """Only these tensors."""
        for model in chain(self.models, *self.statistics.values()):
            for name in set(model) - set(names):
                del model[name]
        return self._log("keep", *names)

    def multiply(self, factor: float) -> Case:
        """All weights multiplied by a number."""
        for model in self.models:
            for name, tensor in model.items():
                if tensor.is_floating_point():
                    model[name] = tensor * factor
        return self._log("multiply", factor)

    def redraw(self, what: str, seed: int = 1) -> Case:
        """Draw ``base``, ``inputs``, ``labels`` or a statistic anew."""
        count, classes = len(self.experts), int(self.labels[0].max()) + 1
        n, d_in = self.inputs[0].shape
        if what == "base":
            self.base = draw_model(self.base, seed, "base")
        elif what == "inputs":
            self.inputs = draw_inputs(count, (n, d_in), seed)
        elif what == "labels":
            self.labels = [(labels + 1) % classes for labels in self.labels]
        else:
            self.statistics[what] = draw_statistic(what, self.base, count, seed)
        return self._log("redraw", what, seed)

    def drop_statistics(self, name: str) -> Case:
        """No statistic reaches this tensor."""
        for file in chain(*self.statistics.values()):
            file.pop(name, None)
        return self._log("drop_statistics", name)

    def silence_statistics(self) -> Case:
        """The first input feature of every matrix is always zero, as of a dead unit."""
        for name, files in self.statistics.items():
            for tensor in (t for file in files for t in file.values() if t.ndim == 2):
                tensor[:, 0] = 0
                if name == "gram":
                    tensor[0] = 0
        return self._log("silence_statistics")

    def _open(self, model: State, label: str) -> _Checkpoint:
        return _Checkpoint(model, label, self.kind)

    def _log(self, name: str, *values: object, **named: object) -> Case:
        parts = [*map(repr, values), *(f"{k}={v!r}" for k, v in named.items())]
        self.recipe.append(f"case.{name}({', '.join(parts)})")
        return self


def make_case(
    method: str | Method,
    *,
    experts: int | None = None,
    dtype: str = "float32",
    d_in: int = 6,
    width: int = 8,
    classes: int = 4,
    extras: Sequence[str] = ("embedding",),
    seed: int = 0,
    inputs: int = _INPUTS,
    kind: str | None = None,
) -> Case:
    """Draw a base, experts near it, statistics and task data.

    Args:
        method: a name or a declaration; it decides the statistics and the data.
        experts: how many; 3 where the method allows it.
        dtype: of all floating-point tensors.
        d_in: inputs of the first linear layer, ``hidden``.
        width: its outputs, then a layer norm.
        classes: outputs of the second linear layer, ``head``.
        extras: tensors that the network carries and does not use: ``embedding``,
            ``convolution``, ``scalar``, ``empty``, ``counter`` (whole numbers), ``tied``.
        seed: other numbers.
        inputs: examples of every task.
        kind: ``full``, ``lora`` or ``moe``; by default the first that is declared.
    """
    declared = load().method(method).item if isinstance(method, str) else method
    given: dict[str, Any] = {
        "experts": experts,
        "dtype": dtype,
        "d_in": d_in,
        "width": width,
        "classes": classes,
        "extras": tuple(extras),
        "seed": seed,
        "inputs": inputs,
        "kind": kind,
    }
    count = experts or default_count(declared)
    shapes = shapes_of(d_in, width, classes, extras)
    base = draw_model(shapes, seed, "base")
    vectors = [draw_model(shapes, seed, f"expert {i}") for i in range(count)]
    states = [add_task_vector(base, vector) for vector in vectors]
    if "tied" in extras:
        for model in (base, *states):
            model["tied.weight"] = model["hidden.weight"].clone()
    case = Case(
        method=declared,
        base=base,
        experts=states,
        statistics={
            name: draw_statistic(name, base, count, seed)
            for name in declared.needs.statistics
        },
        inputs=draw_inputs(count, (inputs, d_in), seed),
        labels=[torch.arange(inputs) % classes for _ in range(count)],
        kind=kind or declared.needs.checkpoints[0],
    ).convert(dtype)
    shown = repr(method) if isinstance(method, str) else "method"
    parts = [f"{k}={v!r}" for k, v in given.items() if v != _DEFAULTS[k]]
    case.recipe = [f"case = make_case({', '.join([shown, *parts])})"]
    return case


_DEFAULTS = dict(make_case.__kwdefaults__ or {})


def default_count(method: Method, wanted: int = 3) -> int:
    """``wanted`` experts, or the nearest number that the method takes."""
    low, high = method.needs.experts
    return max(low, wanted if high is None else min(wanted, high))


def short_lengths(method: Method) -> dict[str, Any]:
    """Few steps for a method that trains: checks need no convergence."""
    if method.scope != "model":
        return {}
    return {
        param.name: max(_SHORT, int(param.low or 0))
        for param in method.params
        if param.name in _LENGTHS and param.type == "int"
    }
