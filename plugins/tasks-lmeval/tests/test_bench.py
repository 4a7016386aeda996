"""A whole benchmark of a track from a file."""

from __future__ import annotations

import pytest

import mtk
from mtk.loading import load
from mtk_tasks_lmeval import load_track


def mean(*, experts):
    """The plain mean."""
    return sum(experts) / len(experts)


def gram_mean(*, experts, gram):
    """The plain mean, of a method that asks for Gram matrices."""
    assert len(gram) == len(experts)
    return sum(experts) / len(experts)


def fisher_mean(*, experts, fisher):
    """The plain mean, of a method that asks for the Fisher information."""
    assert any(found is not None for found in fisher)
    return sum(experts) / len(experts)


@pytest.fixture(scope="module")
def registry():
    registry = load()
    if not {"full"} <= {provided.item.name for provided in registry.adapters}:
        pytest.skip("the adapter of plain checkpoints is not installed")
    registry.methods.clear()
    plugin = registry.plugins[0]
    methods = (
        mtk.Method(name="mean", target=mean, summary="The plain mean"),
        mtk.Method(
            name="gram_mean",
            target=gram_mean,
            summary="The same",
            scope="tensor",
            needs=mtk.Needs(statistics=("gram",)),
        ),
        mtk.Method(
            name="fisher_mean",
            target=fisher_mean,
            summary="The same",
            scope="tensor",
            needs=mtk.Needs(statistics=("fisher",)),
            params=(
                mtk.Param(
                    "estimator", "empirical", "which", stage="statistic",
                    choices=("empirical",),
                ),
            ),
        ),
    )  # fmt: skip
    registry.methods += [mtk.loading.Provided(method, plugin) for method in methods]
    return registry


def test_a_bench_on_a_track_from_a_file(place, tmp_path, registry):
    track, _ = load_track(place / "track.toml")
    result = mtk.bench(
        track=track,
        registry=registry,
        results=tmp_path / "results",
        cache=tmp_path / "cache",
    )
    assert not result.failures
    assert not result.plan.skipped
    records = {record["name"]: record for record in result.records}
    assert set(records) >= {"mean", "gram_mean", "pretrained", "experts", "multitask"}
    scores = records["mean"]["scores"]
    assert set(scores) == {"colour", "capitals", "words", "again"}
    assert records["gram_mean"]["scores"] == scores
    assert records["fisher_mean"]["scores"] == scores
    # Against the mean model, made and asked by hand.
    live = track.target(cache=tmp_path, seed=0, options={})
    model = live.build(place / "one")
    other = dict(live.build(place / "two").named_parameters())
    for name, parameter in model.named_parameters():
        parameter.data = (parameter.data + other[name].data) / 2
    predictions = live.predict(model, "colour", live.data("colour", "test")["inputs"])
    expected = [table["acc"] for table in predictions]
    assert records["mean"]["items"]["colour"] == expected
