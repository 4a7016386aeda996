"""The track ``digits-diffusion`` together with the metrics it names and with merging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import mtk
from mtk.images import Generated, Wanted
from mtk.loading import load, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

metrics = pytest.importorskip("mtk_metrics.images")
track_of = pytest.importorskip("mtk_tasks_diffusion.track")
cells = pytest.importorskip("mtk_tasks_diffusion.cells")
data = pytest.importorskip("mtk_tasks_diffusion.data")


@pytest.fixture
def track(tmp_path: Path) -> Any:
    return track_of.DigitsDiffusion(cache=tmp_path, seed=0, options={})


def test_every_metric_is_there_and_only_scores_of_items_rank() -> None:
    registry = load()
    declared = registry.track("digits-diffusion").item
    for task in declared.tasks:
        first, *more = [registry.metric(name).item for name in task.metrics]
        assert first.kind == "item"
        assert first.higher_is_better
        assert all(callable(resolve(metric.target)) for metric in (first, *more))


def test_real_images_have_a_small_kid_and_wrong_ones_a_large_one(track: Any) -> None:
    def features(cell: str, split: str) -> NDArray[np.float32]:
        pixels = torch.from_numpy(data.of_cell(cell, split)[0][:70, None])
        found: NDArray[np.float32] = track._judge.verdict(pixels).features.numpy()
        return found

    def kid(seen: NDArray[np.float32]) -> tuple[float, float]:
        made = [Generated(category="", domain="", features=row) for row in seen]
        value, error = metrics.kid(predictions=made, references=references)
        return value, error

    references = [
        Wanted(category="", domain="", prompt="", features=row)
        for row in features("plain-01", "train")
    ]
    floor, error = kid(features("plain-01", "test"))
    wrong, _ = kid(features("inverted-01", "test"))
    assert abs(floor) < 4 * error
    assert wrong > 20 * max(abs(floor), error)


def test_base_agrees_with_itself_on_neutral_prompts(track: Any) -> None:
    base = track.build(track_of.ASSET)
    part = track.data(cells.NEUTRAL, "test")
    sides = {
        "predictions": track.predict(base, cells.NEUTRAL, part["inputs"]),
        "references": part["labels"],
    }
    assert np.mean(metrics.joint_accuracy(**sides)) == 1.0
    assert min(metrics.base_similarity(**sides)) > 0.999
    value, error = metrics.kid(**sides)
    assert abs(value) < 4 * error
    # Six images of every prompt, and they differ.
    spread, _ = metrics.diversity(**sides)
    assert spread > 1.0


@pytest.fixture
def made(track: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The track's models, after one step of training each."""
    recipes = resolve("mtk_tasks_diffusion.recipes")
    quick = recipes.Regime(steps=1, multitask_steps=1, batch=4)
    monkeypatch.setitem(recipes.tuned.__kwdefaults__, "regime", quick)
    return track.prepare(lambda _message, _share: None)


def test_what_is_prepared_can_be_merged(track: Any, made: Any) -> None:
    """Through the installed adapters: products on the base, as PEFT adds them."""
    merged = mtk.merge("average", base=made["base"], experts=made["experts"])
    base = track.build(made["base"]).state_dict()
    changed = {n for n, t in merged.tensors.items() if not torch.equal(t, base[n])}
    assert set(merged.tensors) == set(base)
    assert changed
    assert all(".to_" in name for name in changed)


def test_products_and_full_weights_merge_into_the_same_model(
    made: Any, tmp_path: Path
) -> None:
    """Adapters on the base, experts as whole models, and one adapter of all products."""
    combine = pytest.importorskip("mtk_adapters_lora.combine").combine
    base, experts, scale = made["base"], made["experts"], 0.4

    def merged(experts: Any, scale: float, **more: Any) -> Any:
        return mtk.merge(
            "task_arithmetic",
            base=base,
            experts=experts,
            params={"scale": scale},
            **more,
        )

    products = merged(experts, scale).tensors
    whole = [tmp_path / f"whole{number}" for number in range(len(experts))]
    for path, folder in zip(experts, whole, strict=True):
        merged([path], 1.0, output=folder)
    joined = combine(experts, weights=[scale] * len(experts)).save(tmp_path / "joined")
    for other in (merged(whole, scale), merged([joined], 1.0)):
        for name, tensor in products.items():
            torch.testing.assert_close(other.tensors[name], tensor, msg=name)


def test_the_judge_s_own_ceiling_is_told(track: Any) -> None:
    (note,) = track.notes()
    assert "joint 97.2" in note
    assert track.ceiling()["all"]["joint"] == pytest.approx(0.972, abs=5e-4)
