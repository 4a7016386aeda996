"""Finding plugins, and resolving what they name. Nothing here may stop the tool."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from mtk import hookspecs
from mtk.declare import Adapter, Method, Metric, RecipeFormat, Track, TrackFormat
from mtk.errors import (
    AmbiguousName,
    DeclarationError,
    UnknownName,
    UsageError,
    first_line,
)
from mtk.parameters import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")
GROUP = "mtk"
HOOKS: dict[str, type[Any]] = {
    "mtk_methods": Method,
    "mtk_tasks": Track,
    "mtk_adapters": Adapter,
    "mtk_metrics": Metric,
    "mtk_recipes": RecipeFormat,
    "mtk_track_formats": TrackFormat,
}
KINDS = {
    "mtk_methods": "method",
    "mtk_tasks": "track",
    "mtk_adapters": "adapter",
    "mtk_metrics": "metric",
    "mtk_recipes": "recipe format",
    "mtk_track_formats": "track format",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with a plugin: whose it is, where, and the cause."""

    distribution: str
    version: str
    entry_point: str
    cause: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point}): {self.cause}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One loaded entry point."""

    distribution: str
    version: str
    entry_point: str
    module: str
    seconds: float
    hooks: tuple[str, ...]
    imported_torch: bool


@dataclass(frozen=True, slots=True)
class Provided(Generic[T]):
    """A declaration and the plugin it comes from."""

    item: T
    plugin: Plugin

    @property
    def qualified(self) -> str:
        """``distribution:name``, which is never ambiguous."""
        return f"{self.plugin.distribution}:{self.item.name}"  # type: ignore[attr-defined]


@dataclass(slots=True)
class Registry:
    """Everything that plugins offer, and everything that went wrong."""

    plugins: list[Plugin] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    methods: list[Provided[Method]] = field(default_factory=list)
    tracks: list[Provided[Track]] = field(default_factory=list)
    adapters: list[Provided[Adapter]] = field(default_factory=list)
    metrics: list[Provided[Metric]] = field(default_factory=list)
    recipes: list[Provided[RecipeFormat]] = field(default_factory=list)
    track_formats: list[Provided[TrackFormat]] = field(default_factory=list)

    def method(self, name: str) -> Provided[Method]:
        """The method of that name or qualified name (``-`` is accepted for ``_``)."""
        prefix, colon, last = name.rpartition(":")
        return _find(self.methods, prefix + colon + last.replace("-", "_"), "method")

    def track(self, name: str) -> Provided[Track]:
        """The track of that name or qualified name."""
        return _find(self.tracks, name, "track")

    def adapter(self, name: str) -> Provided[Adapter]:
        """The adapter of that name or qualified name."""
        return _find(self.adapters, name, "adapter")

    def metric(self, name: str) -> Provided[Metric]:
        """The metric of that name or qualified name."""
        return _find(self.metrics, name, "metric")

    def ambiguous(self) -> dict[str, list[str]]:
        """Names offered more than once -> their qualified names."""
        result: dict[str, list[str]] = {}
        for offered in (self.methods, self.tracks, self.adapters, self.metrics):
            for name, group in _by_name(offered).items():
                if len(group) > 1:
                    result[name] = [provided.qualified for provided in group]
        return result


def _by_name(offered: Sequence[Provided[Any]]) -> dict[str, list[Provided[Any]]]:
    names: dict[str, list[Provided[Any]]] = {}
    for provided in offered:
        names.setdefault(provided.item.name, []).append(provided)
    return names


def _find(offered: Sequence[Provided[T]], name: str, kind: str) -> Provided[T]:
    names = _by_name(offered)
    found = names.get(name) or [item for item in offered if item.qualified == name]
    if not found:
        many = f"{kind}s"
        raise UnknownName(
            f"no {kind} named {name!r}{suggestion(name, names)} "
            f"(mtk list-{'tasks' if kind == 'track' else many} shows all)"
        )
    if len(found) > 1:
        owners = " and ".join(
            f"{item.plugin.distribution} {item.plugin.version}" for item in found
        )
        write = " or ".join(item.qualified for item in found)
        raise AmbiguousName(f"{name!r} is provided by {owners}; write {write}")
    return found[0]


def load(files: Iterable[Path | str] = ()) -> Registry:
    """Load all installed plugins, then the one-file plugins in ``files``.

    ``MTK_PLUGINS`` (comma list of distributions or entry points; empty means none)
    selects, ``MTK_STRICT_PLUGINS=1`` re-raises, ``MTK_TRACE=1`` prints every call.
    """
    registry = Registry()
    manager = pluggy.PluginManager("mtk")
    manager.add_hookspecs(hookspecs)
    for distribution, version, entry, importer in _sources(files):
        _load_one(registry, manager, distribution, version, entry, importer)
    for offered in (
        registry.methods,
        registry.tracks,
        registry.adapters,
        registry.metrics,
        registry.recipes,
        registry.track_formats,
    ):
        offered.sort(key=lambda provided: (provided.item.name, provided.qualified))
    return registry


def _sources(
    files: Iterable[Path | str],
) -> Iterator[tuple[str, str, str, Callable[[], Any]]]:
    chosen = os.environ.get("MTK_PLUGINS")
    wanted = (
        None if chosen is None else {part.strip() for part in chosen.split(",")} - {""}
    )
    entries = sorted(
        metadata.entry_points(group=GROUP),
        key=lambda entry: (entry.dist.name if entry.dist else "", entry.name),
    )
    for entry in entries:
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "?"
        if wanted is None or {distribution, entry.name} & wanted:
            yield distribution, version, entry.name, entry.load
    for file in files:
        path = Path(file).resolve()
        yield path.stem, "file", path.name, partial(import_file, path)


def import_file(path: Path) -> Any:
    """Import a Python file as a module of its own name, once per process."""
    name = f"mtk_file_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise UsageError(f"no such plugin file: {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load_one(
    registry: Registry,
    manager: pluggy.PluginManager,
    distribution: str,
    version: str,
    entry: str,
    importer: Callable[[], Any],
) -> None:
    def problem(cause: str) -> None:
        registry.problems.append(
            Problem(
                distribution=distribution,
                version=version,
                entry_point=entry,
                cause=cause,
            )
        )

    had_torch, start = "torch" in sys.modules, time.perf_counter()
    try:
        module = importer()
        manager.register(module, name=f"{distribution} ({entry})")
    except UsageError:
        raise
    except Exception as error:
        if os.environ.get("MTK_STRICT_PLUGINS") == "1":
            raise
        problem(f"import failed: {type(error).__name__}: {first_line(error)}")
        return
    hooks = _declared_hooks(module, problem)
    plugin = Plugin(
        distribution=distribution,
        version=version,
        entry_point=entry,
        module=getattr(module, "__name__", repr(module)),
        seconds=time.perf_counter() - start,
        hooks=tuple(hooks),
        imported_torch="torch" in sys.modules and not had_torch,
    )
    registry.plugins.append(plugin)
    for hook in hooks:
        _collect(registry, plugin, hook, getattr(module, hook), problem)


def _declared_hooks(module: Any, problem: Callable[[str], None]) -> list[str]:
    found = []
    for name, value in vars(module).items():
        marked = callable(value) and getattr(value, "mtk_impl", None) is not None
        if name in HOOKS:
            if marked:
                found.append(name)
            else:
                problem(f"{name} is not marked with @mtk.hookimpl")
        elif marked:
            problem(f"unknown hook {name!r}{suggestion(name, HOOKS)}")
    return [name for name in HOOKS if name in found]


def _collect(
    registry: Registry,
    plugin: Plugin,
    hook: str,
    function: Callable[[], Iterable[Any]],
    problem: Callable[[str], None],
) -> None:
    if os.environ.get("MTK_TRACE") == "1":
        print(f"mtk: {plugin.distribution}: {hook}()", file=sys.stderr)
    attribute = {"mtk_tasks": "tracks"}.get(hook, hook.removeprefix("mtk_"))
    offered: list[Provided[Any]] = getattr(registry, attribute)
    try:
        for item in function() or ():
            if not isinstance(item, HOOKS[hook]):
                problem(
                    f"{hook} yielded {type(item).__name__}, not {HOOKS[hook].__name__}"
                )
                continue
            offered.append(Provided(item, plugin))
    except Exception as error:
        if os.environ.get("MTK_STRICT_PLUGINS") == "1":
            raise
        what = "wrong declaration" if isinstance(error, DeclarationError) else "failed"
        problem(f"{hook}: {what}: {type(error).__name__}: {first_line(error)}")


def resolve(target: Any) -> Any:
    """The object that ``"package.module:name"`` or ``"package.module"`` names.

    The only place where what a plugin names is imported.
    """
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    from mtk._torchvision import ensure_importable

    ensure_importable()
    try:
        value = importlib.import_module(module_name)
        for part in filter(None, attribute.split(".")):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise DeclarationError(
            f"{target!r} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    return value
