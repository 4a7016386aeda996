"""Recipes: merges written down. Data only; formats are read by plugins and by ``toml``.

A value of a parameter may be a plain value, a :class:`Gradient` over the layers, a
:class:`Choice` by tensor name, or a list of these with one entry per expert.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Gradient:
    """A number that changes over the layers: anchors at equal distances, linear between.

    The first anchor holds at the first layer, the last at the last one.
    """

    points: tuple[float, ...]

    def at(self, position: float) -> float:
        """The value at a position from 0 to 1."""
        scaled = min(max(position, 0.0), 1.0) * (len(self.points) - 1)
        low = min(int(scaled), max(len(self.points) - 2, 0))
        high = min(low + 1, len(self.points) - 1)
        part = scaled - low
        return self.points[low] * (1.0 - part) + self.points[high] * part


@dataclass(frozen=True, slots=True)
class Choice:
    """The value of the first pattern that fits a tensor's name."""

    cases: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model in a recipe: a path, or the name of an earlier stage.

    ``where`` is its place in the recipe, for messages: ``config.yml, line 4``.
    ``rename`` maps prefixes of its tensor names to those of the result. ``adapter`` is a
    LoRA adapter that is added to the model first.
    """

    path: str
    where: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Another method, or other parameters, for the tensors that fit a pattern.

    Every pattern must fit some tensor. Of two rules for one tensor, the later one wins,
    parameter by parameter.
    """

    match: tuple[str, ...]
    method: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Layers of the result: those from ``start`` to ``end`` (excluded) of each source.

    ``params`` replace the recipe's for these layers. Gradients run within the slab. The
    base has a range of its own; without one, it is that of the first source.
    """

    sources: tuple[tuple[Source, int, int], ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    base: Source | None = None
    base_range: tuple[int, int] | None = None
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One merge, and the earlier stages it builds on.

    Args:
        method: name of the method.
        experts: in order. Empty where ``slabs`` say everything.
        base: the common starting model.
        params: values that hold where no rule says otherwise.
        rules: exceptions, by tensor name.
        only: patterns of the tensors that are merged.
        slabs: layers to stack, in order, instead of the layers as they are.
        stages: earlier merges, whose results are named as sources. They are computed
            tensor by tensor when they are read.
        name: of a stage.
        dtype: of the result's floating-point tensors; the donor's when left out.
        donor: whose config (and tokenizer) the result takes: ``base``, the path of a
            source, or any other model folder; the base, or else the first expert, when
            left out.
        tokenizer: ``donor``, ``union`` of all, ``base``, or a path.
        vocabulary: what to do where embeddings have different numbers of rows.
        shard_size: most bytes of one file of weights.
        notes: what reading the recipe decided, for the user to know.
        where: the recipe's file.
    """

    method: str
    experts: tuple[Source, ...] = ()
    base: Source | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    only: tuple[str, ...] = ("*",)
    slabs: tuple[Slab, ...] = ()
    stages: tuple[Recipe, ...] = ()
    name: str = ""
    dtype: str | None = None
    donor: str | None = None
    tokenizer: str = "donor"
    vocabulary: str = "refuse"
    shard_size: int | None = None
    notes: tuple[str, ...] = ()
    where: str = ""


def evaluate(value: Any, name: str, position: float) -> Any:
    """A parameter's value for one tensor, at a position from 0 to 1 in its layers.

    Raises:
        LookupError: no case of a choice fits the name.
    """
    if isinstance(value, Gradient):
        return value.at(position)
    if isinstance(value, Choice):
        for pattern, case in value.cases:
            if fnmatchcase(name, pattern):
                return evaluate(case, name, position)
        raise LookupError(name)
    if isinstance(value, list | tuple):
        return [evaluate(item, name, position) for item in value]
    return value
