"""What methods return and what a merge gives back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor, nn

    from mtk.declare import Method
    from mtk.loading import Registry

FORMAT = "1"


@dataclass(frozen=True, slots=True)
class PerTask:
    """One tensor's result of a per-task method: a shared part and a code per expert."""

    shared: Tensor
    codes: Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Routed:
    """One tensor's result of a routed method: its static value and routing parts.

    The parts of a linear layer's weight and of its bias are joined under the layer and
    handed to the method's ``route`` for every batch of that layer's inputs.
    """

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Report:
    """What a merge did and cost."""

    seconds: float = 0.0
    peak_bytes: int = 0
    passes: int = 0
    tied: dict[str, str] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)
    without_statistic: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Merged:
    """The result of a merge.

    Args:
        tensors: the merged checkpoint (static), the shared part (per_task) or the
            checkpoint to which routing is added (routed).
        codes: per_task: for every expert, tensor name -> part -> tensor.
        routing: routed: linear weight name -> part -> tensor.
        base: per_task: the base tensors that decoding needs.
        dtypes: per_task: tensor name -> dtype of a decoded tensor.
        path: where a static result was written instead of being kept in memory.
        notes: what was decided on the way, for the user to know.
        parts: methods of a recipe -> how many tensors each merged.
        donor: the model that gave layout, config and tokenizer.
    """

    method: Method
    params: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    codes: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)
    routing: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    report: Report = field(default_factory=Report)
    path: Path | None = None
    notes: list[str] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    donor: str = ""

    def metadata(self) -> dict[str, str]:
        """What a merged file says about itself in its header."""
        return metadata(self.method, self.params, dtypes=self.dtypes)

    def task(self, index: int) -> dict[str, Tensor]:
        """The state dict for one task of a per-task result."""
        if self.method.output != "per_task":
            raise UsageError(
                f"{self.method.name} gives one {self.method.output} result"
            )
        if not 0 <= index < len(self.codes):
            raise UsageError(f"task {index} of {len(self.codes)}: counted from 0")
        import torch

        from mtk.loading import resolve

        decode, codes = resolve(self.method.decode), self.codes[index]
        state = {}
        for name, shared in self.tensors.items():
            if name not in codes:
                state[name] = shared
                continue
            given = (
                {"base": self.base[name].to(shared.dtype)}
                if self.method.needs.base
                else {}
            )
            value = decode(shared=shared, code=codes[name], **given)
            state[name] = value.to(getattr(torch, self.dtypes[name]))
        return state

    def routed(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Add the routing to a model that has these ``tensors``, for the ``with`` block.

        Its linear layers must be visible to hooks (:func:`mtk.live.expose_linears`).
        """
        if self.method.output != "routed":
            raise UsageError(f"{self.method.name} gives a {self.method.output} result")
        from mtk.job import own_params
        from mtk.live import routed
        from mtk.loading import resolve

        params = own_params(self.method, self.params)
        return routed(model, self.routing, resolve(self.method.route), params)

    def added_bytes(self) -> int:
        """Storage beyond one static checkpoint."""
        tables = [*(code for codes in self.codes for code in codes.values())]
        tables += list(self.routing.values())
        return sum(
            t.numel() * t.element_size() for table in tables for t in table.values()
        )

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write everything into one safetensors file that :func:`load_merged` reads.

        A static result is a plain checkpoint. Otherwise names are ``shared.NAME``,
        ``code.EXPERT.PART.NAME``, ``base.NAME`` and ``routing.PART.NAME``.
        """
        from mtk.checkpoint import describe
        from mtk.files import check_target
        from mtk.writing import layout, write_safetensors

        check_target(path, overwrite=overwrite)
        tensors = dict(self.tensors) if self.method.output == "static" else self._flat()
        infos = layout(describe(name, t.shape, t.dtype) for name, t in tensors.items())
        ordered = ((info.name, tensors[info.name]) for info in infos)
        write_safetensors(path, infos, ordered, self.metadata())

    def _flat(self) -> dict[str, Tensor]:
        flat = {f"shared.{name}": tensor for name, tensor in self.tensors.items()}
        flat |= {f"base.{name}": tensor for name, tensor in self.base.items()}
        for index, codes in enumerate(self.codes):
            for name, parts in codes.items():
                flat |= {f"code.{index}.{part}.{name}": t for part, t in parts.items()}
        for name, parts in self.routing.items():
            flat |= {f"routing.{part}.{name}": t for part, t in parts.items()}
        return flat


def metadata(
    method: Method, params: Mapping[str, Any], dtypes: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What a merged file says about itself in its header."""
    import mtk

    return {
        "format": "pt",
        "mtk": json.dumps(
            {
                "format": FORMAT,
                "method": method.name,
                "output": method.output,
                "params": dict(params),
                "version": mtk.__version__,
                **({"dtypes": dict(dtypes)} if dtypes else {}),
            },
            sort_keys=True,
        ),
    }


def load_merged(path: Path | str, *, registry: Registry | None = None) -> Merged:
    """Read back what :meth:`Merged.save` wrote.

    The method's plugin must be installed, or be in the ``registry``.
    """
    from pathlib import Path

    from safetensors import SafetensorError, safe_open

    from mtk.errors import CheckpointError, first_line
    from mtk.loading import load

    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"no such file: {file}")
    try:
        with safe_open(file, framework="pt") as handle:
            text = (handle.metadata() or {}).get("mtk")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: not a readable safetensors file: {first_line(error)}"
        ) from error
    if text is None:
        raise CheckpointError(f"{file} was not written by mtk; open it as a checkpoint")
    head = json.loads(text)
    method = (registry or load()).method(head["method"]).item
    merged = Merged(method=method, params=head["params"], dtypes=head.get("dtypes", {}))
    if head["output"] == "static":
        merged.tensors = tensors
        return merged
    for key, tensor in tensors.items():
        place, _, rest = key.partition(".")
        if place == "shared":
            merged.tensors[rest] = tensor
        elif place == "base":
            merged.base[rest] = tensor
        elif place == "routing":
            part, _, name = rest.partition(".")
            merged.routing.setdefault(name, {})[part] = tensor
        else:
            index, part, name = rest.split(".", 2)
            while len(merged.codes) <= int(index):
                merged.codes.append({})
            merged.codes[int(index)].setdefault(name, {})[part] = tensor
    return merged
