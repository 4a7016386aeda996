"""The hooks. Each yields declarations; none may import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mtk.declare import Adapter, Method, Metric, RecipeFormat, Track, TrackFormat

hookspec = pluggy.HookspecMarker("mtk")
hookimpl = pluggy.HookimplMarker("mtk")


@hookspec
def mtk_methods() -> Iterable[Method]:  # type: ignore[empty-body]
    """Merging methods.

    Example::

        @mtk.hookimpl
        def mtk_methods():
            yield mtk.Method(name="mean", target="my_package:mean", summary="Plain mean")
    """


@hookspec
def mtk_tasks() -> Iterable[Track]:  # type: ignore[empty-body]
    """Tracks, each a grid of tasks with one base.

    Example::

        @mtk.hookimpl
        def mtk_tasks():
            yield mtk.Track(
                name="my-grid", target="my_package.track:Grid", summary="...",
                setting="image classification", version="1",
                tasks=(mtk.Task(name="sketch-birds", held_in=True),),
            )
    """


@hookspec
def mtk_adapters() -> Iterable[Adapter]:  # type: ignore[empty-body]
    """Adapters, each for one kind of checkpoint.

    Example::

        @mtk.hookimpl
        def mtk_adapters():
            yield mtk.Adapter(name="full", target="my_package.full", summary="...")
    """


@hookspec
def mtk_metrics() -> Iterable[Metric]:  # type: ignore[empty-body]
    """Metrics, each from predictions and references to one score per item.

    Example::

        @mtk.hookimpl
        def mtk_metrics():
            yield mtk.Metric(name="accuracy", target="my_package:accuracy", summary="...")
    """


@hookspec
def mtk_recipes() -> Iterable[RecipeFormat]:  # type: ignore[empty-body]
    """Formats of recipe files, each from a file to a :class:`mtk.recipes.Recipe`.

    Example::

        @mtk.hookimpl
        def mtk_recipes():
            yield mtk.RecipeFormat(
                name="mergekit", target="my_package:read", summary="...", suffixes=(".yml",)
            )
    """


@hookspec
def mtk_track_formats() -> Iterable[TrackFormat]:  # type: ignore[empty-body]
    """Formats of files that describe a track, for ``mtk bench --track FILE``.

    Example::

        @mtk.hookimpl
        def mtk_track_formats():
            yield mtk.TrackFormat(
                name="toml", target="my_package:read", summary="...", suffixes=(".toml",)
            )
    """
