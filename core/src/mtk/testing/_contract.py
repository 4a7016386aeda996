"""Checks of the contract: types, memory, order, seeds and files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mtk import engine
from mtk.loading import Plugin, Provided, Registry
from mtk.results import load_merged
from mtk.testing._basics import BASICS
from mtk.testing._checks import Check, Failed, NotApplicable
from mtk.testing._compare import close, effect, same_bytes, setting, shown, stored

if TYPE_CHECKING:
    from torch import Tensor

    from mtk.declare import Method
    from mtk.results import Merged
    from mtk.testing._checks import Subject

_DTYPES = ("float64", "float32", "float16", "bfloat16")
# Small and odd, so that every tensor of a case is cut, and none into equal parts.
_CHUNK = 7
# More inputs than a usual batch holds, so that seeds give different batches.
_MANY = 300


def dtypes(subject: Subject) -> None:
    """Names, shapes and dtypes of the result are those of the inputs."""
    for dtype in _DTYPES:
        case = subject.case(dtype=dtype, extras=("embedding", "counter"))
        for found in _states(case.merge()):
            if set(found) != set(case.base):
                raise Failed(f"{dtype}: the result holds {sorted(found)}")
            for name, tensor in found.items():
                wanted = case.base[name]
                if tensor.dtype != wanted.dtype or tensor.shape != wanted.shape:
                    raise Failed(f"{name!r} is {shown(tensor)}, not {shown(wanted)}")


def _states(merged: Merged) -> list[dict[str, Tensor]]:
    return [merged.tensors] if merged.method.output == "routed" else effect(merged)


def bfloat16(subject: Subject) -> None:
    """The result in bfloat16 is the float32 result of the same numbers, rounded."""
    narrow = subject.case(dtype="bfloat16").merge()
    wide = subject.case(dtype="bfloat16").convert("float32").merge()
    for one, two in zip(_states(narrow), _states(wide), strict=True):
        rounded = {name: tensor.bfloat16() for name, tensor in two.items()}
        same_bytes(one, rounded, "bfloat16 inputs, against float32 rounded once")


def counters(subject: Subject) -> None:
    """Tensors of whole numbers are copied."""
    case = subject.case(extras=("counter",))
    for found in _states(case.merge()):
        name = "norm.counter"
        same_bytes({name: found[name]}, {name: case.base[name]}, "a whole number")


def non_contiguous(subject: Subject) -> None:
    """Transposed and strided tensors give what contiguous ones give."""
    plain = subject.case().merge()
    scattered = subject.case().make_non_contiguous().merge()
    for one, two in zip(effect(scattered), effect(plain), strict=True):
        close(one, two, "strided inputs, against contiguous ones")


def same_twice(subject: Subject) -> None:
    """A second merge in the same process gives the same bytes, whatever came between."""
    results = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            results.append(stored(subject.case().merge()))
            subject.case(seed=9).merge()
    subject.case().merge()
    same_bytes(results[1], results[0], "the second merge, against the first")


def seeds(subject: Subject) -> None:
    """Another seed gives another result."""
    if not subject.method.stochastic:
        raise NotApplicable("declares no randomness")
    case = subject.case(inputs=_MANY)
    one, two = stored(case.merge(seed=1)), stored(case.merge(seed=2))
    if all(torch.equal(tensor, two[name]) for name, tensor in one.items()):
        raise Failed("seeds 1 and 2 give equal results")


def order(subject: Subject) -> None:
    """A tensor's result does not depend on which other tensors are there."""
    if subject.method.scope in ("two-pass", "model"):
        raise NotApplicable("declares that it looks at all tensors together")
    names = ("head.weight", "head.bias", "norm.weight")  # routing joins weight and bias
    whole = stored(subject.case().merge())
    part = stored(subject.case().keep(*names).merge())
    among_all = {name: whole[name] for name in part if name in whole}
    same_bytes(part, among_all, "merged among three tensors, against among all")


def chunks(subject: Subject) -> None:
    """Slices of a tensor, merged one by one, are the slices of the merged tensor."""
    if subject.method.scope != "element":
        raise NotApplicable(
            f"declares scope {subject.method.scope!r}, which is never cut"
        )
    if subject.method.output != "static":
        raise NotApplicable(f"{subject.method.output} results are never cut")
    whole = subject.case().merge()
    with setting(engine, CHUNK=_CHUNK):
        cut = subject.case().merge()
    subject.cases[-1].recipe.insert(
        0, f"import mtk.engine; mtk.engine.CHUNK = {_CHUNK}"
    )
    close(cut.tensors, whole.tensors, f"cut into {_CHUNK} entries, against whole", 1e-6)


def tied(subject: Subject) -> None:
    """Two names of one matrix get equal bytes."""
    for found in _states(subject.case(extras=("tied",)).merge()):
        one, two = found["tied.weight"], found["hidden.weight"]
        same_bytes({"tied": one}, {"tied": two}, "a tied matrix, against its twin")


def files(subject: Subject) -> None:
    """What is saved and loaded again is the same, and decodes to the base's shapes."""
    case = subject.case(extras=("embedding", "counter"))
    merged = case.merge()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merged.safetensors"
        merged.save(path)
        again = load_merged(path, registry=_only(subject))
    case.recipe[-1] = f"merged = {case.recipe[-1]}"
    case.recipe += [
        "import mtk, pathlib",
        "path = pathlib.Path('merged.safetensors')",
        "merged.save(path)",
        "mtk.load_merged(path)",
    ]
    same_bytes(stored(again), stored(merged), "read back, against before saving")
    for one, two in zip(effect(again), effect(merged), strict=True):
        same_bytes(one, two, "used after loading, against before saving")


def _only(subject: Subject) -> Registry:
    plugin = subject.plugin or Plugin(
        distribution="checked",
        version="0",
        entry_point="checked",
        module="checked",
        seconds=0.0,
        hooks=("mtk_methods",),
        imported_torch=False,
    )
    provided: Provided[Method] = Provided(subject.method, plugin)
    return Registry(plugins=[plugin], methods=[provided])


CHECKS = (
    Check(
        "contract.dtypes",
        "A merged checkpoint replaces its inputs, so names, shapes and types must stay.",
        dtypes,
        BASICS,
    ),
    Check(
        "contract.bfloat16",
        "16-bit models are computed in float32 and rounded once.",
        bfloat16,
        BASICS,
    ),
    Check(
        "contract.counters",
        "Counters and indices are whole numbers; averaging them breaks a model.",
        counters,
        BASICS,
    ),
    Check(
        "contract.non-contiguous",
        "Tensors may come transposed or strided; only their values count.",
        non_contiguous,
        BASICS,
    ),
    Check(
        "contract.same-twice",
        "Equal inputs, parameters and seed give equal bytes, or no record can be trusted.",
        same_twice,
        BASICS,
    ),
    Check(
        "contract.seeds",
        "A seed that changes nothing makes an interval over seeds meaningless.",
        seeds,
        BASICS,
    ),
    Check(
        "contract.order",
        "Tensors are merged in any order, in any number of processes.",
        order,
        BASICS,
    ),
    Check(
        "contract.chunks",
        "Scope 'element' promises that any slice can be merged alone.",
        chunks,
        BASICS,
    ),
    Check(
        "contract.tied",
        "Two names of one matrix must stay one matrix.",
        tied,
        BASICS,
    ),
    Check(
        "contract.files",
        "A result that cannot be saved and loaded cannot be used.",
        files,
        BASICS,
    ),
)
