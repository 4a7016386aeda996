"""The inputs of a combination: opened, named alike, and checked against each other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, ParameterError, UsageError
from mtk.folders import sha256
from mtk_adapters_lora.adapter import LoraAdapter, LoraModule
from mtk_adapters_lora.components import homes, parts_of, select
from mtk_adapters_lora.formats import load_adapter
from mtk_adapters_lora.products import Products, place_modules

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk.adapters import Checkpoint

# PEFT's own; anything else in an adapter's configuration is not passed on.
_TASK_TYPES = {
    "SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION",
}  # fmt: skip

# Of a name that a stranger wrote: so many characters, and none that could mean more.
_MOST_SHOWN = 80
_ODD = re.compile(r"[^\w./:@-]", re.ASCII)


@dataclass(slots=True, kw_only=True)
class Source:
    """One adapter, its modules under common names, and its weight."""

    index: int
    adapter: LoraAdapter
    modules: Mapping[str, LoraModule]
    given: float | Mapping[str, float] = 1.0
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def weight(self, name: str) -> float:
        """The user's weight of this module."""
        if not isinstance(self.given, Mapping):
            return float(self.given)
        if name not in self.given:
            raise ParameterError(f"the weights of adapter {self.index} lack {name!r}")
        return float(self.given[name])

    def strength(self, name: str) -> float:
        """Weight times scale."""
        return self.weight(name) * self.modules[name].scale

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B in float32, with the column scales of ziplora in A."""
        a, b = self.adapter.factors(self.modules[name])
        if self.columns:
            scale = self.columns.get(name)
            if scale is None or tuple(scale.shape) != (a.shape[1],):
                raise ParameterError(
                    f"adapter {self.index}: no column scales of ({a.shape[1]},) for {name!r}"
                )
            a = a * scale.to(a.dtype)
        return a, b

    def provenance(self) -> dict[str, Any]:
        """File name, hash and weight."""
        given = self.given
        weight = dict(given) if isinstance(given, Mapping) else float(given)
        return {
            "path": self.adapter.label,
            **sha256(self.adapter.path),
            "weight": weight,
        }


def open_sources(
    adapters: Sequence[LoraAdapter | Path | str],
    weights: Sequence[float | Mapping[str, float]] | None,
    base: Checkpoint | None,
    column_scales: Sequence[Mapping[str, Tensor]] | None,
    component: str | None = None,
) -> list[Source]:
    """Open adapters and give their modules common names."""
    count = len(adapters)
    if not count:
        raise UsageError("no adapters given")
    for what, values in (("weights", weights), ("column_scales", column_scales)):
        if values is not None and len(values) != count:
            raise ParameterError(f"{len(values)} {what} for {count} adapters")
    sources = []
    for index, item in enumerate(adapters):
        adapter = item if isinstance(item, LoraAdapter) else _load(item, index)
        given = 1.0 if weights is None else weights[index]
        _check_finite(given, index)
        if component is not None:
            adapter = select(adapter, component, base)
        adapter, modules = _named_alike(adapter, base)
        columns = column_scales[index] if column_scales is not None else {}
        sources.append(
            Source(
                index=index,
                adapter=adapter,
                modules=modules,
                given=given,
                columns=columns,
            )
        )
    return sources


def _load(item: Path | str, index: int) -> LoraAdapter:
    from mtk.opening import locate

    return load_adapter(locate(str(item), f"adapter {index}")[0])


def _check_finite(given: float | Mapping[str, float], index: int) -> None:
    numbers = list(given.values()) if isinstance(given, Mapping) else [given]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ParameterError(f"the weight of adapter {index} is {number!r}")
        if not math.isfinite(number):
            raise ParameterError(f"the weight of adapter {index} is {number}")


def _named_alike(
    adapter: LoraAdapter, base: Checkpoint | None
) -> tuple[LoraAdapter, dict[str, LoraModule]]:
    """Modules under the base's names where it is given, under their own otherwise."""
    if base is None:
        if adapter.format == "kohya":
            raise UsageError(
                f"{adapter.label}: Kohya files write names with underscores only\n"
                "Give the base as well (--base, from Python base=), whose names decide"
            )
        return adapter, dict(adapter.modules)
    placed = place_modules(adapter, base)
    sides = {p.transposed for p in placed.values() if p.module.kind == "linear"}
    if len(sides) > 1:
        raise CheckpointError(
            f"{adapter.label}: some weights of {base.label} are stored transposed, some "
            "not; a PEFT adapter cannot say so for each"
        )
    modules = {}
    for item in placed.values():
        kernel = base.info(item.weight).shape[2:]
        kind = "conv" if kernel else item.module.kind
        stem = item.weight.removesuffix(".weight")
        modules[stem] = replace(item.module, kernel=kernel, kind=kind)
    whole = Products(adapter, base).replaced() if adapter.whole else {}
    turned = sides == {True}
    component, written = _written_as(adapter, modules)
    named = replace(
        adapter, fan_in_fan_out=turned, whole=whole, component=component, format=written
    )
    return named, modules


def _written_as(
    adapter: LoraAdapter, modules: Mapping[str, LoraModule]
) -> tuple[str, str]:
    """Component and file format of a result under the base's names.

    PEFT's format has names of one model; what belongs to a pipeline, or to a known part
    of one, is written as diffusers does.
    """
    if any("/" in name for name in modules):
        return "", "diffusers"
    parts = parts_of(adapter)
    if adapter.format == "peft" or len(parts) > 1:
        return "", "peft"
    options = homes(parts.pop())
    if not options or adapter.fan_in_fan_out:
        return "", "peft"
    unet = any(name.startswith(("down_blocks.", "mid_block.")) for name in modules)
    return options[0] if unet else options[-1], "diffusers"


def check_sources(sources: Sequence[Source], *, placed: bool) -> dict[str, Any]:
    """What all must share: shapes, orientation, format; nothing but plain factors.

    Args:
        sources: the opened adapters.
        placed: the names are those of a base, so formats of files may differ.
    """
    for source in sources:
        _check_plain(source.adapter)
    first: dict[str, Source] = {}
    for source in sources:
        for name, module in source.modules.items():
            other = first.setdefault(name, source).modules[name]
            mine, theirs = _geometry(module), _geometry(other)
            if mine != theirs:
                raise CheckpointError(
                    f"{name!r} is {mine} in {source.adapter.label}, {theirs} in "
                    f"{first[name].adapter.label}\nThe adapters have different bases"
                )
    for what in ("fan_in_fan_out",) if placed else ("fan_in_fan_out", "format"):
        found = {getattr(source.adapter, what) for source in sources}
        if len(found) > 1:
            raise CheckpointError(
                f"the adapters differ in {what}: {', '.join(map(str, sorted(found)))}\n"
                "Give the base as well (--base, from Python base=), whose names decide"
            )
    tasks = {source.adapter.config.get("task_type") for source in sources}
    task = tasks.pop() if len(tasks) == 1 else None
    return {
        "fan_in_fan_out": sources[0].adapter.fan_in_fan_out,
        # "diffusers" comes before "peft": what a pipeline loads is worth more.
        "file_format": min(source.adapter.format for source in sources),
        "component": max(source.adapter.component for source in sources),
        "task_type": task if isinstance(task, str) and task in _TASK_TYPES else None,
    }


def _geometry(module: LoraModule) -> tuple[object, ...]:
    return (module.kind, module.d_out, module.d_in, *module.kernel)


def _check_plain(adapter: LoraAdapter) -> None:
    for module in adapter.modules.values():
        key = module.magnitude or module.bias
        if key:
            what = "DoRA magnitudes" if module.magnitude else "a trained bias"
            raise CheckpointError(
                f"{adapter.label}: {key!r}: {what} cannot be combined into factors\n"
                "Merge it into its base instead (the products view does so exactly)"
            )
    if adapter.whole:
        raise CheckpointError(
            f"{adapter.label}: {min(adapter.whole)!r} is stored whole, and factors cannot "
            "hold it\nMerge it into its base, or give base= if it only repeats the base's"
        )


def other_bases(sources: Sequence[Source]) -> list[str]:
    """A note where the configurations name unlike bases. The names are not followed."""
    given = [source.adapter.config.get("base_model_name_or_path") for source in sources]
    names = sorted({name for name in given if isinstance(name, str) and name})
    if len(names) < 2:
        return []
    short = [_ODD.sub("?", name[:_MOST_SHOWN]) for name in names[:2]]
    shown = " and ".join(repr(name) for name in short)
    return [f"the adapters name different bases, {shown}; their shapes fit"]
