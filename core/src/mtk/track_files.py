"""Tracks that a file describes, read by the plugin that knows its format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtk.errors import UsageError
from mtk.loading import Provided, resolve

if TYPE_CHECKING:
    from mtk.declare import Track, TrackFormat
    from mtk.loading import Registry


def format_of(registry: Registry, name: str) -> Provided[TrackFormat] | None:
    """What reads the file ``name`` as a track; None if nothing does."""
    suffix = Path(name).suffix
    fitting = (form for form in registry.track_formats if suffix in form.item.suffixes)
    return next(fitting, None)


def is_track_file(registry: Registry, name: str) -> bool:
    """Whether ``name`` is that of a track file, there or not; names have no suffix."""
    suffix = Path(name).suffix
    known = format_of(registry, name) is not None
    return known or (suffix not in ("", ".py") and Path(name).is_file())


def track_in(registry: Registry, name: str) -> Provided[Track]:
    """The track of that name, or the one that a file describes.

    Raises:
        UsageError: there is none, or the file names what is not installed.
    """
    form = format_of(registry, name)
    if form is None and is_track_file(registry, name):
        raise UsageError(
            f"no installed plugin reads {name} as a track\n"
            "mtk-tasks-lmeval reads .toml; mtk plugins shows what is installed"
        )
    if form is None:
        return registry.track(name)
    if not Path(name).is_file():
        raise UsageError(f"there is no track file {name}")
    track: Track = resolve(form.item.target)(name)
    _check_names(registry, track, name)
    return Provided(track, form.plugin)


def _check_names(registry: Registry, track: Track, file: str) -> None:
    """Refuse a track file that names a metric or an adapter that there is not."""
    for task in track.tasks:
        for metric in task.metrics:
            try:
                registry.metric(metric)
            except UsageError as error:
                raise UsageError(f"{file}: cell {task.name!r}: {error}") from error
    try:
        registry.adapter(track.adapter)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
