"""Declarations of the toy tracks of the other two kinds, and all that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtk.declare import Adapter, Metric, Task, Track
from mtk.loading import Provided, Registry
from mtk.testing._toy import PLUGIN, ToyAdapter
from mtk.testing._toy_noise import CENTRES, ToyProducts, closeness
from mtk.testing._toy_words import WORDS as CELLS
from mtk.testing._toy_words import exact, overlap, variety

if TYPE_CHECKING:
    from mtk.declare import Method

WORDS = Track(
    name="toy-words",
    target="mtk.testing._toy_words:ToyWords",
    summary="Letters that follow each other",
    setting="conformance checks",
    tasks=tuple(
        Task(
            name=name,
            held_in=name in ("early", "late"),
            ability=name == "copy",
            metrics=("exact", "overlap", "variety"),
        )
        for name in CELLS
    ),
    version="1",
    adapter="full",
)
NOISE = Track(
    name="toy-noise",
    target="mtk.testing._toy_noise:ToyNoise",
    summary="The noise in points near a centre, by LoRA",
    setting="conformance checks",
    tasks=tuple(
        Task(name=name, held_in=name != "middle", metrics=("closeness",))
        for name in CENTRES
    ),
    version="1",
    adapter="lora",
    output="gaussian",
)


def kinds_registry(*methods: Method) -> Registry:
    """Everything that a benchmark on the two tracks needs."""
    metrics = (
        Metric(name="exact", target=exact, summary="Share of right texts"),
        Metric(name="overlap", target=overlap, summary="Share of right letters"),
        Metric(name="variety", target=variety, summary="Different texts", kind="set"),
        Metric(name="closeness", target=closeness, summary="Noise told rightly"),
    )
    adapters = (
        Adapter(name="full", target=ToyAdapter(), summary="One safetensors file"),
        Adapter(
            name="lora",
            target=ToyProducts(),
            summary="Toy factors",
            kind="lora",
            views=("products",),
        ),
    )
    return Registry(
        plugins=[PLUGIN],
        methods=[Provided(method, PLUGIN) for method in methods],
        tracks=[Provided(track, PLUGIN) for track in (WORDS, NOISE)],
        adapters=[Provided(adapter, PLUGIN) for adapter in adapters],
        metrics=[Provided(metric, PLUGIN) for metric in metrics],
    )
