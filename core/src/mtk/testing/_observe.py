"""One merge with a watched method: what it got, changed and returned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtk.errors import first_line
from mtk.loading import resolve
from mtk.results import PerTask, Routed
from mtk.testing._compare import equal_bytes, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from mtk.declare import Method
    from mtk.testing._checks import Subject

_NARROW = (torch.float16, torch.bfloat16)


@dataclass(slots=True)
class Observed:
    """Findings of one plain merge; each list is empty where all is well."""

    errors: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    narrow: list[str] = field(default_factory=list)


class _Precision(TorchDispatchMode):
    """Notes operations that return 16-bit floats."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        items = result if isinstance(result, tuple | list) else (result,)
        for item in items:
            if isinstance(item, torch.Tensor) and item.dtype in _NARROW:
                self.found[f"{func} returned {shown(item)}"] = None
        return result


def observe(subject: Subject) -> Observed:
    """Merge once through the engine, with the method's functions watched."""
    case = subject.case()
    if "observed" in subject.memory:
        case.recipe.append("case.merge()")  # the snippet of a failure shows it again
        known: Observed = subject.memory["observed"]
        return known
    found = Observed()
    copies = [{name: t.clone() for name, t in model.items()} for model in case.models]
    inputs = [tensor.clone() for tensor in (*case.inputs, *case.labels)]
    case.method = _watched(subject.method, found)
    try:
        case.merge()
    except Exception as error:
        if not (found.changed or found.misshapen or found.not_finite or found.errors):
            found.errors.append(f"{type(error).__name__}: {error}")
    for model, copy in zip(case.models, copies, strict=True):
        found.changed += _changes(model, copy)
    after = (*case.inputs, *case.labels)
    if not all(equal_bytes(a, b) for a, b in zip(after, inputs, strict=True)):
        found.changed.append("the inputs or labels of a task")
    subject.memory["observed"] = found
    return found


def _watched(method: Method, found: Observed) -> Method:
    scans = tuple(
        replace(scan, target=_watch(resolve(scan.target), found, scan=True))
        for scan in method.scans
    )
    return replace(
        method,
        target=_watch(resolve(method.target), found, scan=False),
        scans=scans,
    )


def _watch(
    target: Callable[..., Any], found: Observed, *, scan: bool
) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        # The method gets copies, so that the engine's own check does not end the merge
        # at the first change and byte-wise changes that it cannot see are found too.
        given = {key: _cloned(value) for key, value in arguments.items()}
        expected = _named_tensors(arguments)
        precision = _Precision()
        try:
            with precision:
                result = target(**given)
        except Exception as error:
            shapes = ", ".join(f"{k} {shown(t)}" for k, t in list(expected.items())[:4])
            found.errors.append(
                f"{type(error).__name__}: {first_line(error)}\ngiven {shapes}"
            )
            raise
        found.changed += _changes(_named_tensors(given), expected)
        found.narrow += list(precision.found)
        if not scan:
            _note(result, arguments["experts"][0], found)
        return result

    return call


def _note(result: Any, like: Any, found: Observed) -> None:
    states = result if isinstance(result, dict) else {"": result}
    wanted = like if isinstance(like, dict) else {"": like}
    for name, value in states.items():
        main = value
        if isinstance(value, PerTask):
            main = value.shared
        elif isinstance(value, Routed):
            main = value.value
        if not isinstance(main, torch.Tensor) or name not in wanted:
            return  # the engine refuses it, and says why
        label = f"{name!r} " if name else ""
        if main.shape != wanted[name].shape:
            found.misshapen.append(
                f"{label}given {shown(wanted[name])}, returned {shown(main)}"
            )
        for part, tensor in [("", main), *_parts(value)]:
            bad = (
                int((~torch.isfinite(tensor)).sum())
                if tensor.is_floating_point()
                else 0
            )
            if bad:
                found.not_finite.append(
                    f"{label}{part}{shown(tensor)}: {bad} of {tensor.numel()} entries "
                    "are NaN or infinite"
                )


def _parts(value: Any) -> Iterator[tuple[str, Tensor]]:
    tables: list[Mapping[str, Tensor]] = []
    if isinstance(value, PerTask):
        tables = list(value.codes)
    elif isinstance(value, Routed):
        tables = [value.parts]
    for table in tables:
        for key, tensor in table.items():
            yield f"part {key!r} ", tensor


def _cloned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list):
        return [_cloned(item) for item in value]
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return value


def _named_tensors(value: Any, label: str = "") -> dict[str, Tensor]:
    if isinstance(value, torch.Tensor):
        return {label: value}
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found: dict[str, Tensor] = {}
    for key, item in items:
        found |= _named_tensors(item, f"{label} {key}".strip())
    return found


def _changes(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {shown(before[name])} was changed"
        for name in before
        if name not in now or not equal_bytes(now[name], before[name])
    ]
