"""A whole benchmark of the track on small data and a tiny mT5."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import mtk
from mtk.loading import Provided, load
from mtk.models import folder_of
from mtk_tasks_crosslingual import plugin
from mtk_tasks_crosslingual.cells import CELLS, HELD_IN, MULTITASK
from mtk_tasks_crosslingual.track import CrosslingualMt5


def mean(*, experts):
    """The plain mean."""
    return sum(experts) / len(experts)


def with_statistics(*, experts, gram, fisher, info):
    """The plain mean, of a method that asks for everything."""
    if info.role in ("linear", "head"):
        assert all(found is not None for found in gram)
    assert all(found is not None for found in fisher)
    return sum(experts) / len(experts)


def test_a_bench(filled, opened, tmp_path):
    registry = load()
    names = {provided.item.name for provided in (*registry.adapters, *registry.metrics)}
    if not {"full", "accuracy"} <= names:
        pytest.skip("the adapter of plain checkpoints or mtk-metrics is not installed")
    registry.methods[:] = [
        Provided(method, registry.plugins[0])
        for method in (
            mtk.Method(name="mean", target=mean, summary="The plain mean"),
            mtk.Method(
                name="with_statistics", target=with_statistics, summary="The same",
                scope="tensor",
                needs=mtk.Needs(statistics=("gram", "fisher"), info=True),
                params=(
                    mtk.Param(
                        "estimator", "empirical", "which", stage="statistic",
                        choices=("empirical",),
                    ),
                ),
            ),
        )
    ]  # fmt: skip
    (declared,) = plugin.mtk_tasks()
    target = partial(CrosslingualMt5, cuts=opened._cuts, regime=opened._given)
    track = replace(declared, target=target)
    (filled / "mtk").mkdir(exist_ok=True)
    for number, name in enumerate((*HELD_IN, MULTITASK)):
        module = opened.build(filled / "base")
        torch.manual_seed(number)
        for parameter in module.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        opened._save(filled, name, module, None)
    cache = folder_of(tmp_path / "models", track)
    cache.mkdir(parents=True)
    (cache / "root.json").write_text(json.dumps({"root": str(filled)}))
    try:
        result = mtk.bench(
            track=track, registry=registry, results=tmp_path / "results",
            cache=tmp_path / "models",
        )  # fmt: skip
    finally:
        import shutil

        shutil.rmtree(filled / "mtk")
    assert not result.failures, result.failures
    assert not result.plan.skipped
    records = {record["name"]: record for record in result.records}
    assert set(records["mean"]["scores"]) == set(CELLS)
    assert records["with_statistics"]["scores"] == records["mean"]["scores"]
    found = records["mean"]["metrics"]["qa-th"]
    assert set(found) == {"squad_mean", "squad_em", "squad_f1"}
