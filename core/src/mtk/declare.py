"""What plugins declare: frozen data, no torch, no behaviour beyond validation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mtk._declaring import NAME, SLUG, Param, one_of, require
from mtk._formats import RecipeFormat, TrackFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "INVARIANTS",
    "STATISTICS",
    "Adapter",
    "Method",
    "Metric",
    "Needs",
    "Param",
    "RecipeFormat",
    "Scan",
    "Task",
    "TensorInfo",
    "Track",
    "TrackFormat",
]

Scope = Literal["element", "tensor", "two-pass", "model"]
Output = Literal["static", "per_task", "routed"]
OUTPUTS = ("categorical", "gaussian", "none")
STATISTICS = ("fisher", "gram")
INVARIANTS = ("symmetric", "idempotent", "identity_at_zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a method asks for; it receives exactly this and nothing else.

    Args:
        base: the common starting model, as keyword ``base``. ``"optional"`` gives None
            where the user has none.
        experts: fewest and most experts; ``None`` is no limit.
        statistics: names of statistics; each arrives under its name as a list with one
            entry per expert, ``None`` where the statistic does not reach a tensor.
        info: the :class:`TensorInfo` of the current tensor, as keyword ``info``.
        roles: the result depends on the roles of tensors, so that the model's class is
            asked for them where it can be had; else name and shape decide.
        data: ``unlabelled`` or ``labelled`` inputs (model scope only).
        split: the split those data and the statistics come from.
        gradients: differentiates through the merged model (model scope only).
        outputs: kinds of outputs (:class:`Track`) that it can learn from; all, if empty.
        architecture: ``same``, or ``any`` for methods that merge unlike models.
        checkpoints: kinds of checkpoint it accepts.
        task_at_inference: the task must be known when the result is used.
    """

    base: bool | Literal["optional"] = False
    experts: tuple[int, int | None] = (1, None)
    statistics: tuple[str, ...] = ()
    info: bool = False
    roles: bool = False
    data: Literal["none", "unlabelled", "labelled"] = "none"
    split: Literal["train", "validation", "test_time"] = "validation"
    gradients: bool = False
    outputs: tuple[str, ...] = ()
    architecture: Literal["same", "any"] = "same"
    checkpoints: tuple[str, ...] = ("full", "lora", "moe")
    task_at_inference: bool = False

    def __post_init__(self) -> None:
        require(
            self.base in (True, False, "optional"),
            f"needs.base is {self.base!r}; write True, False or 'optional'",
        )
        low, high = self.experts
        require(
            low >= 1 and (high is None or high >= low),
            f"needs.experts is {self.experts}; write (fewest, most or None)",
        )
        for name in self.statistics:
            one_of("needs", "statistics", name, STATISTICS)
        one_of("needs", "data", self.data, ("none", "unlabelled", "labelled"))
        one_of("needs", "split", self.split, ("train", "validation", "test_time"))
        for name in self.outputs:
            one_of("needs", "outputs", name, OUTPUTS)
        one_of("needs", "architecture", self.architecture, ("same", "any"))
        for kind in self.checkpoints:
            one_of("needs", "checkpoints", kind, ("full", "lora", "moe"))


@dataclass(frozen=True, slots=True)
class Scan:
    """One pass over all tensors before the merge of a two-pass method.

    The target gets what the method's own target gets, and returns a dict of numbers
    or tensors. Equal keys are added up over the tensors; the sums reach later scans and
    the merge as ``summary``.

    Args:
        target: ``"package.module:function"`` or a function.
        when: the scan runs only if each named parameter has one of the given values.
        same: parameters that must be the same for all tensors if this scan runs.
        slices: what one call may see. Nothing: a whole tensor; ``tensor``: any flat
            slice of one; ``model``: several tensors end to end as well, with the
            ``info`` of the first. The method itself is given slices where all scans
            that run allow it, and one is declared that does.
        each: the sums are kept apart for each tensor, and only calls for that tensor
            see them.
        finish: target that is called once with the sums as ``summary`` and the
            parameters; the dict it returns takes the place of the sums.
        needed: target that is called with the parameters; the scan runs, and reads its
            tensors, only if it gives True.
    """

    target: Any
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    same: tuple[str, ...] = ()
    slices: Literal["", "tensor", "model"] = ""
    each: bool = False
    finish: Any = None
    needed: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A merging method.

    Args:
        name: snake_case, unique among installed plugins or used as ``dist:name``.
        target: ``"package.module:function"`` or a function.
        summary: one line.
        paper: where it comes from, for example ``arXiv:2306.01708``.
        scope: ``element`` (any slice of a tensor may be given), ``tensor``,
            ``two-pass`` (``scans`` first) or ``model`` (whole state dicts).
        output: ``static``, ``per_task`` (see ``decode``) or ``routed`` (see ``route``).
        scans: passes of a two-pass method, in order.
        decode: per_task only; target that turns a shared tensor and a code into the
            tensor of one task.
        route: routed only; target that gives the correction of one linear layer.
        stochastic: draws at random; receives ``random`` and must declare ``seed``.
        reference: shown in every benchmark table, and run on random deltas as control.
        symmetric: the order of the experts does not matter.
        idempotent: identical experts give that expert, at the default parameters.
        identity_at_zero: identical experts and base give the base.
    """

    name: str
    target: Any
    summary: str
    paper: str = ""
    family: str = ""
    needs: Needs = Needs()
    params: tuple[Param, ...] = ()
    scope: Scope = "element"
    output: Output = "static"
    scans: tuple[Scan, ...] = ()
    decode: Any = None
    route: Any = None
    stochastic: bool = False
    reference: bool = False
    symmetric: bool = True
    idempotent: bool = False
    identity_at_zero: bool = True

    def __post_init__(self) -> None:
        owner = f"method {self.name!r}"
        require(bool(NAME.fullmatch(self.name)), f"{owner}: the name is not snake_case")
        one_of(owner, "scope", self.scope, ("element", "tensor", "two-pass", "model"))
        one_of(owner, "output", self.output, ("static", "per_task", "routed"))
        names = [param.name for param in self.params]
        require(
            len(set(names)) == len(names), f"{owner}: a parameter is declared twice"
        )
        require(
            (self.scope == "two-pass") == bool(self.scans),
            f"{owner}: scans belong to scope 'two-pass', which needs at least one",
        )
        require(
            (self.output == "per_task") == (self.decode is not None),
            f"{owner}: decode belongs to output 'per_task', which needs it",
        )
        require(
            (self.output == "routed") == (self.route is not None),
            f"{owner}: route belongs to output 'routed', which needs it",
        )
        require(
            self.scope == "model"
            or (self.needs.data == "none" and not self.needs.gradients),
            f"{owner}: data and gradients are given to scope 'model' only",
        )
        require(
            self.stochastic == ("seed" in names),
            f"{owner}: a stochastic method declares the parameter seed, others do not",
        )
        require(
            not (self.stochastic and self.scope == "element"),
            f"{owner}: a stochastic method draws for whole tensors; use scope 'tensor'",
        )
        require(
            self.scope != "model"
            or (not self.needs.statistics and not self.needs.info),
            f"{owner}: statistics and info are given tensor by tensor, not in scope 'model'",
        )
        reserved = {
            "base",
            "experts",
            "info",
            "summary",
            "random",
            "tasks",
            *STATISTICS,
        }
        clash = reserved & set(names)
        require(not clash, f"{owner}: the parameter name {clash} is reserved")

    @property
    def grid(self) -> tuple[dict[str, Any], ...]:
        """All combinations of the declared grids, the default values first."""
        tuned = [param for param in self.params if param.grid]
        default = {param.name: param.default for param in tuned}
        product = itertools.product(*(param.grid for param in tuned))
        points = [dict(zip(default, values, strict=True)) for values in product]
        return (default, *(point for point in points if point != default))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number computed from predictions and references.

    The target is called as ``target(predictions=..., references=...)``. A metric of kind
    ``item`` returns one score per item, so that intervals and paired differences can be
    computed; one of kind ``set`` returns ``(value, standard error)`` for the whole cell,
    and never ranks.
    """

    name: str
    target: Any
    summary: str
    higher_is_better: bool = True
    low: float | None = 0.0
    high: float | None = 1.0
    kind: Literal["item", "set"] = "item"

    def __post_init__(self) -> None:
        require(
            bool(NAME.fullmatch(self.name)), f"metric {self.name!r}: not snake_case"
        )
        one_of(f"metric {self.name!r}", "kind", self.kind, ("item", "set"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What knows one kind of checkpoint.

    The target is a module or object with the functions of
    :class:`mtk.adapters.AdapterTarget`. ``views`` name the ways it can present a
    checkpoint: a LoRA adapter offers its products and its factors, an MoE adapter its
    tensors and its single experts.
    """

    name: str
    target: Any
    summary: str
    kind: Literal["full", "lora", "moe"] = "full"
    views: tuple[str, ...] = ("tensors",)
    formats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(SLUG.fullmatch(self.name)), f"adapter {self.name!r}: bad name")
        one_of(f"adapter {self.name!r}", "kind", self.kind, ("full", "lora", "moe"))
        require(bool(self.views), f"adapter {self.name!r}: at least one view")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One cell of a grid. A held-in cell has an expert, a generalization cell none.

    Args:
        metrics: the first ranks; the others are measured and reported too.
        ability: what the base can do and no expert is trained for. It tells how much a
            merge forgets, and is neither held in nor generalization.
        expert: where the expert comes from, for readers; a track may leave it out.
    """

    name: str
    held_in: bool
    factors: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    ability: bool = False
    expert: str = ""

    def __post_init__(self) -> None:
        owner = f"task {self.name!r}"
        require(bool(self.metrics), f"{owner}: at least one metric")
        require(len(set(self.metrics)) == len(self.metrics), f"{owner}: a metric twice")
        require(
            not (self.held_in and self.ability),
            f"{owner}: what an expert is trained for is no ability of the base",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A grid of tasks with one base. See :class:`mtk.tracks.LiveTrack` for the target.

    Args:
        adapter: name of the adapter that opens its experts. With one of kind ``lora``
            the base is a full model, the experts are opened on it as products, and
            merges are full weights.
        output: what ``outputs`` of the target gives: ``categorical``, unnormalised
            log-probabilities over the last dimension; ``gaussian``, the mean of a unit
            Gaussian (a diffusion model's noise); or ``none``.
        base: the model that experts start from, in a few words.
        most_steps: cap on the parameter ``steps`` of methods that learn, where one step
            of the model is dear. Part of ``version``.
        version: of data and recipes together; part of every record.
        options: protocol fields with defaults, for example ``head_scope``.
        merge: tensor-name patterns that are merged; all others stay at the base.
    """

    name: str
    target: Any
    summary: str
    setting: str
    tasks: tuple[Task, ...]
    version: str
    adapter: str = "full"
    output: Literal["categorical", "gaussian", "none"] = "categorical"
    options: tuple[Param, ...] = ()
    merge: tuple[str, ...] = ("*",)
    base: str = ""
    most_steps: int | None = None
    source: str = ""
    licence: str = ""
    embedded: bool = True

    def __post_init__(self) -> None:
        owner = f"track {self.name!r}"
        require(bool(SLUG.fullmatch(self.name)), f"{owner}: bad name")
        names = [task.name for task in self.tasks]
        require(len(set(names)) == len(names), f"{owner}: a task is declared twice")
        require(bool(self.held_in), f"{owner}: no held-in task")
        one_of(owner, "output", self.output, OUTPUTS)

    @property
    def held_in(self) -> tuple[Task, ...]:
        """Cells with an expert, in the order of the experts."""
        return tuple(task for task in self.tasks if task.held_in)

    @property
    def generalization(self) -> tuple[Task, ...]:
        """Cells without an expert, those of base ability left out."""
        return tuple(t for t in self.tasks if not (t.held_in or t.ability))

    @property
    def abilities(self) -> tuple[Task, ...]:
        """Cells of what the base can do and no expert touches."""
        return tuple(task for task in self.tasks if task.ability)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Name, shape, dtype (``bfloat16``, ``float32`` ...) and role of one tensor.

    ``role`` is ``linear``, ``linear_t``, ``head``, ``embedding``, ``norm``, ``bias``,
    ``conv``, ``buffer`` or ``other``. ``linear`` is the weight of a linear layer,
    (d_out, d_in), ``linear_t`` one that is stored as (d_in, d_out), ``head`` an output
    embedding of its own; the last two only where the model's class is asked.
    ``layer`` is the weight that a bias belongs to, else the tensor's own name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str = "other"
    layer: str = ""
