"""A plugin like any other, installed for the tests only: see conftest.py."""

from __future__ import annotations

import mtk

CELLS = ("left", "right", "middle", "up", "down")


@mtk.hookimpl
def mtk_methods():
    yield mtk.Method(
        name="toy_mean",
        target="toy_maths:mean",
        summary="Mean with a factor",
        paper="arXiv:0000.00000",
        params=(
            mtk.Param("scale", 1.0, "a factor", low=0.0, high=2.0, grid=(0.5, 1.0)),
            mtk.Param("rule", "sum", "how", choices=("sum", "max")),
        ),
        reference=True,
        identity_at_zero=False,
    )
    yield mtk.Method(
        name="toy_masks",
        target="toy_maths:shared",
        summary="The mean, and a difference per task",
        output="per_task",
        decode="toy_maths:decode",
    )
    yield mtk.Method(name="toy_broken", target="toy_maths:broken", summary="Fails")
    yield mtk.Method(
        name="toy_many",
        target="toy_maths:mean",
        summary="Needs more than there are",
        needs=mtk.Needs(experts=(9, None), base=True, statistics=("fisher",)),
    )
    yield mtk.Method(
        name="toy_fisher",
        target="toy_maths:fisher",
        summary="Takes a statistic",
        needs=mtk.Needs(statistics=("fisher",)),
        scope="tensor",
    )


@mtk.hookimpl
def mtk_tasks():
    yield mtk.Track(
        name="toy",
        target="mtk.testing._toy:ToyTrack",
        summary="Points in turned planes",
        setting="tests",
        tasks=tuple(mtk.Task(name=n, held_in=i < 3) for i, n in enumerate(CELLS)),
        version="1",
        adapter="toy",
        options=(mtk.Param("experts", 3, "number of held-in cells", low=1),),
    )


@mtk.hookimpl
def mtk_adapters():
    yield mtk.Adapter(name="toy", target="toy_maths:ADAPTER", summary="One file")


@mtk.hookimpl
def mtk_metrics():
    yield mtk.Metric(
        name="accuracy", target="mtk.testing._toy:accuracy", summary="Share right"
    )
