"""Views of checkpoints: other names, or one over another. Nothing is copied."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint
    from mtk.declare import TensorInfo


class Renamed:
    """A checkpoint whose tensors have other names.

    Args:
        source: the checkpoint.
        mapping: new name -> name in the source. Several new names may share one tensor.
        keep: whether the source's other tensors are seen, under their own names.
    """

    def __init__(
        self, source: Checkpoint, mapping: Mapping[str, str], *, keep: bool = False
    ) -> None:
        known = set(source.names())
        for new, old in mapping.items():
            if old not in known:
                raise CheckpointError(
                    f"{source.label} has no tensor {old!r}, wanted as {new!r}"
                )
        self._source, self._old = source, dict(mapping)
        if keep:
            renamed = set(mapping.values())
            for name in known - renamed:
                if name in self._old:
                    raise CheckpointError(
                        f"{source.label}: {self._old[name]!r} cannot be called {name!r}, "
                        "which it has as well"
                    )
                self._old[name] = name
        if not self._old:
            raise CheckpointError(f"{source.label}: nothing of it was chosen")
        self._new: dict[str, list[str]] = {}
        for new in sorted(self._old):
            self._new.setdefault(self._old[new], []).append(new)
        self._infos: dict[str, TensorInfo] = {}
        self.label, self.kind = source.label, source.kind
        if hasattr(source, "part"):
            self.part: Callable[[str, int, int], Tensor] = self._part
        if hasattr(source, "fill"):
            self.fill: Callable[[str, int, Tensor], None] = self._fill

    def names(self) -> Sequence[str]:
        """New names, sorted."""
        return sorted(self._old)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role under the new name."""
        info = self._infos.get(name)
        if info is None:
            info = self._infos[name] = self._renamed(name)
        return info

    def read(self, name: str) -> Tensor:
        """The tensor itself."""
        return self._source.read(self._old[name])

    def settle(self) -> None:
        """Let the source settle the roles of its tensors, if it can."""
        settle = getattr(self._source, "settle", None)
        if settle is not None:
            settle()
            self._infos.clear()

    def _part(self, name: str, start: int, end: int) -> Tensor:
        part: Tensor = self._source.part(self._old[name], start, end)  # type: ignore[attr-defined]
        return part

    def _fill(self, name: str, start: int, room: Tensor) -> None:
        self._source.fill(self._old[name], start, room)  # type: ignore[attr-defined]

    def _renamed(self, name: str) -> TensorInfo:
        """A bias goes with its weight's new name; without the weight it is ``other``."""
        old = self._source.info(self._old[name])
        if old.layer in ("", old.name):
            return replace(old, name=name, layer=old.layer and name)
        layers = self._new.get(old.layer, [])
        if not layers:
            role = "other" if old.role == "bias" else old.role
            return replace(old, name=name, role=role, layer=name)
        beside = f"{name.rpartition('.')[0]}.{old.layer.rpartition('.')[2]}"
        return replace(old, name=name, layer=beside if beside in layers else layers[0])


def with_prefixes(
    source: Checkpoint, prefixes: Mapping[str, str], *, keep: bool = False
) -> Renamed:
    """Names that begin with a prefix begin with another one instead.

    The longest prefix that fits a name counts. Other tensors are hidden, or kept with
    ``keep``.

    Raises:
        CheckpointError: a prefix fits nothing, or two tensors get one name.
    """
    order = sorted(prefixes, key=len, reverse=True)
    unused, mapping = set(prefixes), dict[str, str]()
    for name in source.names():
        prefix = next((p for p in order if name.startswith(p)), None)
        if prefix is None:
            continue
        unused.discard(prefix)
        new = prefixes[prefix] + name.removeprefix(prefix)
        if new in mapping:
            raise CheckpointError(
                f"{source.label}: {mapping[new]!r} and {name!r} would both be {new!r}"
            )
        mapping[new] = name
    if unused:
        first = min(source.names())
        raise CheckpointError(
            f"{source.label} has no tensor that begins with {min(unused)!r}\n"
            f"Its names look like {first!r}"
        )
    return Renamed(source, mapping, keep=keep)


class Over:
    """A part of a model laid over a whole one: what the part lacks is the whole's.

    So a text-only model, renamed, takes part in merging a vision-language model: its
    other tensors are the base's, and do not move.

    Raises:
        CheckpointError: the part has a tensor that the whole lacks.
    """

    def __init__(self, part: Checkpoint, whole: Checkpoint) -> None:
        self._upper, self._whole = part, whole
        self._own = frozenset(part.names())
        strange = self._own - set(whole.names())
        if strange:
            raise CheckpointError(
                f"{part.label}: {min(strange)!r} is no tensor of {whole.label}"
            )
        self.label, self.kind = part.label, part.kind
        if hasattr(part, "part") and hasattr(whole, "part"):
            self.part: Callable[[str, int, int], Tensor] = self._part

    def names(self) -> Sequence[str]:
        """Those of the whole, sorted."""
        return self._whole.names()

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and role of one tensor."""
        info: TensorInfo = self._from(name).info(name)
        return info

    def read(self, name: str) -> Tensor:
        """One tensor of the part, or else of the whole."""
        tensor: Tensor = self._from(name).read(name)
        return tensor

    def settle(self) -> None:
        """Let both settle the roles of their tensors, if they can."""
        for source in (self._upper, self._whole):
            getattr(source, "settle", lambda: None)()

    def _from(self, name: str) -> Any:
        return self._upper if name in self._own else self._whole

    def _part(self, name: str, start: int, end: int) -> Tensor:
        part: Tensor = self._from(name).part(name, start, end)
        return part
