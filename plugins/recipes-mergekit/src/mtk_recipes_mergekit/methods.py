"""mergekit's methods and parameters, and ours that do the same. Data only.

A method that is in ``KNOWN`` but has no row is refused. To add one, add a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mtk_recipes_mergekit.arcs import nuslerp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Knob:
    """A parameter as mergekit knows it.

    Args:
        name: its name in a recipe.
        kind: what it takes.
        of: what has its own value: the merge (``all``), each model (``model``) or each
            model but the base (``expert``). Levels below are not asked for the others.
        default: None if it must be given.
        ours: our parameter; none if the value changes nothing here.
        words: our value for true and for false.
        only: the one value that can be carried out here.
        low, high, above: range; ``above`` leaves out its lower end.
    """

    name: str
    kind: Literal["number", "whole", "switch"] = "number"
    of: Literal["all", "model", "expert"] = "all"
    default: Any = None
    ours: str = ""
    words: tuple[str, str] | None = None
    only: Any = None
    low: float | None = None
    high: float | None = None
    above: bool = False

    @property
    def range(self) -> str:
        """The range in words."""
        low = "" if self.low is None else f"{'>' if self.above else '>='} {self.low:g}"
        high = "" if self.high is None else f"<= {self.high:g}"
        return " and ".join(filter(None, (low, high))) or "a finite number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method of mergekit's, carried out by one of ours.

    Args:
        name: mergekit's name.
        ours: the name of our method.
        base: ``needed``: experts are seen relative to it; ``origin``: the same where the
            recipe names one; ``start``: it is the first of the models; ``model``: one
            more model, without a part of its own.
        count: fewest and most models besides the base (with ``start`` and ``model``:
            the base counted).
        fixed: parameters of ours that make it behave like mergekit's.
        alone: a single model is copied, since our method needs two.
        means: the parameter that turns a weighted sum into a mean, or ``always``.
        finish: makes our parameters of those found, where names alone do not do it.
        notes: how mergekit's method differs from the published one, or ours from it.
    """

    name: str
    ours: str
    base: Literal["needed", "origin", "start", "model"]
    knobs: tuple[Knob, ...]
    count: tuple[int, int | None] = (1, None)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False
    means: str = ""
    finish: Callable[[dict[str, Any], str], dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()


def _weight(of: Literal["model", "expert"] = "expert") -> Knob:
    return Knob("weight", of=of, ours="weights")


def _task_vectors(
    *, normalize: bool, words: tuple[str, str] | None = None
) -> tuple[Knob, ...]:
    """What all of mergekit's task vector methods share, but for rescale and density."""
    return (
        _weight(),
        Knob("lambda", default=1.0, ours="scale"),
        Knob(
            "normalize",
            "switch",
            default=normalize,
            ours="merge_func" if words else "normalize",
            words=words,
        ),
        Knob("int8_mask", "switch", default=False),
    )


def _density(ours: str = "density") -> Knob:
    return Knob("density", of="expert", default=1.0, ours=ours, low=0.0, high=1.0)


def _rescale(*, default: bool, ours: str = "", only: Any = None) -> Knob:
    words = ("l1", "none") if ours else None
    return Knob("rescale", "switch", default=default, ours=ours, words=words, only=only)


_SIGNS = "the sum of the weighted entries elects the sign, and plus where it is zero"
_MEAN = {"threshold_scope": "tensor", "keep_rule": "exact", "sign_tie": "positive"}
_TRIM = (
    "ties as mergekit does it: one threshold per tensor and model, of which exactly "
    f"int(density * entries) stay, at least one; {_SIGNS}"
)
_DROP = (
    "rescale keeps the sum of magnitudes of each tensor, where the paper divides by the "
    "density; the entries that are dropped are drawn with mtk's seed, not mergekit's"
)
_ZERO = "a vector of norm zero is mixed linearly, where mergekit takes the arc"

ROWS = (
    Row(
        name="linear",
        ours="linear",
        base="model",
        knobs=(
            _weight("model"),
            Knob("normalize", "switch", default=True, ours="normalize"),
        ),
        means="normalize",
    ),
    Row(
        name="passthrough",
        ours="linear",
        base="model",
        knobs=(Knob("scale", of="model", default=1.0, ours="weights"),),
        count=(1, 1),
        fixed={"normalize": False},
    ),
    Row(
        name="task_arithmetic",
        ours="task_arithmetic",
        base="needed",
        knobs=(
            *_task_vectors(normalize=False),
            _density(ours=""),
            _rescale(default=False),
        ),
        means="normalize",
    ),
    Row(
        name="ties",
        ours="ties",
        base="needed",
        knobs=(
            *_task_vectors(normalize=True, words=("mean", "sum")),
            _density(),
            _rescale(default=False, only=False),
        ),
        fixed=_MEAN,
        means="normalize",
        notes=(_TRIM,),
    ),
    Row(
        name="dare_linear",
        ours="dare",
        base="needed",
        knobs=(
            *_task_vectors(normalize=False),
            _density(),
            _rescale(default=True, ours="rescale"),
        ),
        fixed={"merge": "task_arithmetic"},
        means="normalize",
        notes=(f"dare_linear as mergekit does it: {_DROP}",),
    ),
    Row(
        name="dare_ties",
        ours="dare",
        base="needed",
        knobs=(
            *_task_vectors(normalize=False, words=("mean", "sum")),
            _density(),
            _rescale(default=True, ours="rescale"),
        ),
        fixed=_MEAN | {"merge": "ties", "ties_density": 1.0},
        means="normalize",
        notes=(f"dare_ties as mergekit does it: {_DROP}; {_SIGNS}",),
    ),
    Row(
        name="slerp",
        ours="slerp",
        base="start",
        knobs=(Knob("t", ours="t", low=0.0, high=1.0),),
        count=(2, 2),
        fixed={
            "origin": "zero",
            "scope": "tensor",
            "dot_threshold": 0.9995,
            "eps": 1e-8,
        },
        notes=(f"slerp: {_ZERO}",),
    ),
    Row(
        name="nuslerp",
        ours="slerp",
        base="origin",
        knobs=(
            _weight(),
            Knob("nuslerp_flatten", "switch", default=True, ours="flatten"),
            Knob("nuslerp_row_wise", "switch", default=False, ours="row_wise"),
        ),
        count=(2, 2),
        fixed={"dot_threshold": 1.0, "eps": 1e-8},
        means="always",
        finish=nuslerp,
        notes=(f"nuslerp: {_ZERO}",),
    ),
    Row(
        name="multislerp",
        ours="multislerp",
        base="origin",
        knobs=(
            _weight(),
            Knob("normalize_weights", "switch", default=True, ours="normalize"),
            Knob("eps", default=1e-8, ours="eps", low=0.0, above=True),
        ),
        alone=True,
        means="normalize_weights",
    ),
    Row(
        name="karcher",
        ours="karcher",
        base="model",
        knobs=(
            Knob("max_iter", "whole", default=10, ours="iterations", low=1),
            Knob("tol", default=1e-5, ours="tolerance", low=0.0, above=True),
        ),
        alone=True,
    ),
)
BY_NAME = {row.name: row for row in ROWS}

# mergekit 0.1.5. Names that stand in no row are refused by name.
KNOWN = (
    *BY_NAME,
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "model_stock",
    "nearswap",
    "ram",
    "ramplus_tl",
    "sce",
)
# Parameters of methods without a row: known, so that no suggestion is made for them.
OTHER_PARAMETERS = ("alpha", "epsilon", "filter_wise", "gamma", "r", "select_topk")
PARAMETERS = sorted(
    {knob.name for row in ROWS for knob in row.knobs} | {*OTHER_PARAMETERS}
)
