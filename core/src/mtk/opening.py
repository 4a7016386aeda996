"""From paths and state dicts to open checkpoints, through the installed adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtk.adapters import Checkpoint, Layout
    from mtk.declare import Method
    from mtk.loading import Registry
    from mtk.vocabulary import Vocabulary

    Model = Path | str | Mapping[str, Tensor] | Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a user has agreed to: downloads from the Hub, and reading pickles."""

    hub: bool = False
    pickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An opened model, and where it came from.

    Args:
        name: as the user gave it.
        path: the file or folder; None for a model in memory.
        target: the adapter that opened it; None for a model in memory.
        origin: the address and commit it was downloaded from.
        computed: an earlier stage of a recipe; ``path`` is then only its name.
    """

    name: str
    checkpoint: Checkpoint
    path: Path | None = None
    target: Any = None
    origin: str = ""
    computed: bool = False

    def layout(self) -> Layout:
        """How it is stored; a plain file where nothing more is known."""
        from mtk.adapters import Layout

        if self.path is None or not hasattr(self.target, "layout"):
            return Layout()
        layout: Layout = self.target.layout(self.path)
        return layout

    def vocabulary(self) -> Vocabulary | None:
        """Its tokens, where it has a tokenizer that can be read."""
        if self.path is None or not hasattr(self.target, "vocabulary"):
            return None
        found: Vocabulary | None = self.target.vocabulary(self.path)
        return found

    def notes(self) -> tuple[str, ...]:
        """What of it is left out, for the user to know."""
        if self.path is None or not hasattr(self.target, "notes"):
            return ()
        found: tuple[str, ...] = self.target.notes(self.path)
        return found

    def files(self) -> list[Path]:
        """All files that decide what it is."""
        if self.path is None or self.computed:
            return []
        if self.path.is_file():
            return [self.path]
        weights = getattr(self.checkpoint, "files", None)
        if weights is None:
            weights = sorted(self.path.glob("*.safetensors"))
        beside = [f for f in self.layout().files.values() if isinstance(f, Path)]
        return list(dict.fromkeys([*weights, *beside]))


def open_input(
    model: Model,
    label: str,
    registry: Registry,
    base: Checkpoint | None = None,
    allowed: Allowed | None = None,
) -> Input:
    """A path, a state dict or an open checkpoint, opened.

    Args:
        model: what to open.
        label: what messages call a model in memory.
        registry: the installed adapters.
        base: for adapters whose files hold differences to it.
        allowed: what the user has agreed to; nothing when left out.
    """
    from mtk.checkpoint import StateDict
    from mtk.loading import resolve
    from mtk.pickles import is_pickle, open_pickle, refusal

    if isinstance(model, Mapping):
        return Input(name=label, checkpoint=StateDict(model, label))
    if not isinstance(model, str | Path):
        return Input(name=label, checkpoint=model)
    allowed = allowed or Allowed()
    path, origin = locate(str(model), label, hub=allowed.hub)
    if is_pickle(path):
        if not allowed.pickle:
            raise CheckpointError(refusal(path))
        return Input(
            name=str(model),
            checkpoint=open_pickle(path, str(path)),
            path=path,
            target=_full(registry) if path.is_dir() else None,
            origin=origin,
        )
    # Plain checkpoints come last: a folder of an adapter holds safetensors files as well.
    for provided in sorted(registry.adapters, key=lambda p: p.item.kind == "full"):
        target = resolve(provided.item.target)
        if target.matches(path):
            return Input(
                name=str(model),
                checkpoint=target.open(path, view=provided.item.views[0], base=base),
                path=path,
                target=target,
                origin=origin,
            )
    known = ", ".join(provided.item.name for provided in registry.adapters) or "none"
    raise CheckpointError(
        f"{label}: no installed adapter opens {path}\n"
        f"Adapters: {known} (mtk list-adapters); safetensors files and folders are read"
    )


def _full(registry: Registry) -> Any:
    """The adapter that knows how families of whole models are stored."""
    from mtk.loading import resolve

    found = [p.item.target for p in registry.adapters if p.item.kind == "full"]
    return resolve(found[0]) if found else None


def locate(model: str, label: str, *, hub: bool = False) -> tuple[Path, str]:
    """The local path of a model, and the address it was downloaded from, if it was."""
    from mtk.folders import check_manifest, is_partial

    path = Path(model)
    if _exists(path):
        if path.is_dir() or is_partial(path):
            check_manifest(path if path.is_dir() else path.parent)
        return path, ""
    from mtk.hub import fetch, hint, is_hub_id

    if is_hub_id(model) and (hub or model.startswith("hf://")):
        fetched = fetch(model)
        check_manifest(fetched.path)
        return fetched.path, fetched.origin
    raise CheckpointError(f"{label}: no such file or folder: {model}{hint(model)}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def open_model(
    model: Model, label: str, registry: Registry, base: Checkpoint | None = None
) -> Checkpoint:
    """The checkpoint of :func:`open_input`."""
    return open_input(model, label, registry, base).checkpoint


def open_statistics(
    method: Method,
    given: Mapping[str, Sequence[Model]] | Sequence[Model] | None,
    experts: int,
    registry: Registry,
) -> dict[str, list[Checkpoint]]:
    """The statistics a method needs, one per expert."""
    needed = method.needs.statistics
    if not isinstance(given, Mapping):
        if given and len(needed) != 1:
            need = " and ".join(needed) or "none"
            raise UsageError(
                f"{method.name} needs statistics: {need}; name what you give"
            )
        given = dict.fromkeys(needed, given or ())
    files = {}
    for name in needed:
        models = given.get(name) or ()
        if len(models) != experts:
            raise UsageError(
                f"{method.name} needs the statistic {name!r} of each of {experts} experts; "
                f"{len(models)} given\nGive --statistics once per expert, in their order"
            )
        files[name] = [
            open_model(model, f"{name} of expert {i}", registry)
            for i, model in enumerate(models)
        ]
    return files


def check_needs(
    method: Method,
    experts: Sequence[Checkpoint],
    base: Checkpoint | None,
    tasks: Sequence[Any],
) -> None:
    """Refuse what a method cannot do with these models."""
    needs, count = method.needs, len(experts)
    low, high = needs.experts
    if count < low or (high is not None and count > high):
        takes = (
            str(low)
            if low == high
            else f"at least {low}"
            if high is None
            else f"{low} to {high}"
        )
        raise UsageError(f"{method.name} takes {takes} experts, not {count}")
    if needs.base is True and base is None:
        raise UsageError(f"{method.name} needs the base model; add --base")
    for source in experts:
        if source.kind not in needs.checkpoints:
            raise UsageError(
                f"{method.name} does not merge {source.kind} checkpoints ({source.label})"
            )
    if needs.data != "none" and len(tasks) != count:
        raise UsageError(
            f"{method.name} needs {needs.data} data of each expert's task, and runs in "
            "mtk bench\nFrom Python, give mtk.merge(..., tasks=[...]), one per expert"
        )
