"""The DomainNet tracks with our methods, adapters and metrics, on tiny models."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mtk
from mtk.loading import resolve
from mtk.roots import note_root
from mtk_metrics import images
from mtk_tasks_domainnet import plugin
from mtk_tasks_domainnet.cells import CIFAR, NEUTRAL

clip = resolve("mtk_tasks_domainnet.clip")
clip_data = resolve("mtk_tasks_domainnet.clip_data")
clip_track = resolve("mtk_tasks_domainnet.clip_track")
sd21_data = resolve("mtk_tasks_domainnet.sd21_data")
sd21_track = resolve("mtk_tasks_domainnet.sd21_track")

TESTS = Path(__file__).parent.parent / "plugins" / "tasks-domainnet" / "tests"
OPTIONS = {"images": 4, "steps": 2, "guidance": 2.0}


def _miniature():
    """The plugin's own small folders; tests are no package, so by path."""
    spec = importlib.util.spec_from_file_location(
        "domainnet_miniature", TESTS / "miniature.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


miniature = _miniature()
MINI = miniature.MINI


def ignore(message, fraction=None):
    """A report that nobody reads."""


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    miniature.put_root(folder)
    return folder


def cache_of(tmp_path, track, root):
    """A cache of the bench, in which the root is noted."""
    folder = tmp_path / "cache" / "tracks" / f"{track}-1"
    note_root(folder, root)
    return folder


def bench(tmp_path, track, methods):
    done = mtk.bench(
        track=track,
        methods=methods,
        registry=mtk.load(),
        results=tmp_path / "results",
        cache=tmp_path / "cache",
        budget=1,
    )
    assert not done.failures
    return done, {row.name: row for row in done.rows}


def test_the_clip_track_is_benchmarked(tmp_path, root):
    regime = replace(miniature.REGIME, steps=20, every=10)

    def target(*, cache, seed, options):
        return clip_track.DomainNetClip(
            cache=cache, seed=seed, options=options, grid=MINI, regime=regime
        )

    (real, _) = plugin.mtk_tasks()
    ability = mtk.Task(name=CIFAR, held_in=False, ability=True)
    track = replace(
        real,
        name="mini-clip",
        target=target,
        tasks=plugin.tasks(MINI, ("accuracy",), ability),
    )
    live = target(cache=cache_of(tmp_path, "mini-clip", root), seed=0, options={})
    for name in (*MINI.held_in, "multitask"):
        live.make(root, name, ignore)
    _, rows = bench(tmp_path, track, ["average", "regmean"])
    assert {"pretrained", "experts", "multitask", "average", "regmean"} <= set(rows)
    for name in ("pretrained", "multitask", "average", "regmean"):
        found = (rows[name].held_in, rows[name].generalization, rows[name].ability)
        assert all(0 <= value <= 1 for value in found), name
    assert rows["experts"].held_in > rows["pretrained"].held_in
    # What the table says of the base is what the track says of it.
    base = clip.load(root / clip_data.FOLDER)
    scores = []
    for cell in MINI.held_in:
        data = live.data(cell, "test")
        found = torch.tensor(live.predict(base, cell, data["inputs"]))
        scores.append((found == data["labels"]).double().mean().item())
    assert rows["pretrained"].held_in == pytest.approx(sum(scores) / len(scores))


def sd21(tmp_path, root):
    """The live track with its judge, and what makes it."""
    for library in ("diffusers", "peft", "transformers"):
        pytest.importorskip(library)
    miniature.put_pipeline(root / sd21_data.FOLDER)

    def target(*, cache, seed, options):
        return sd21_track.DomainNetSd21(
            cache=cache,
            seed=seed,
            options={**OPTIONS, **options},
            grid=MINI,
            regime=miniature.REGIME,
        )

    live = target(cache=cache_of(tmp_path, "mini-sd21", root), seed=0, options={})
    live.make(root, "judge", ignore)
    return live, target


def test_the_sd21_track_is_benchmarked(tmp_path, root):
    live, target = sd21(tmp_path, root)
    for name in (*MINI.held_in, "multitask"):
        live.make(root, name, ignore)
    (_, real) = plugin.mtk_tasks()
    track = replace(
        real,
        name="mini-sd21",
        target=target,
        tasks=plugin.tasks(MINI, real.tasks[0].metrics, real.abilities[0]),
        options=(),
    )
    done, rows = bench(tmp_path, track, ["average", "fisher", "regmean"])
    assert {"pretrained", "experts", "multitask", "average"} <= set(rows)
    assert rows["pretrained"].ability == pytest.approx(1.0, abs=1e-5)
    assert rows["average"].ability < 1.0
    assert 0 <= rows["average"].generalization <= 1
    assert done.sheets


def test_metrics_take_what_the_sd21_track_gives(tmp_path, root):
    live, _ = sd21(tmp_path, root)
    unet = live.build(root / sd21_data.FOLDER / "unet")
    for task in ("real-office", NEUTRAL):
        data = live.data(task, "test")
        made = live.predict(unet, task, data["inputs"])
        given = {"predictions": made, "references": data["labels"]}
        for metric in (images.kid, images.diversity):
            assert np.isfinite(metric(**given)).all(), (task, metric)
    assert images.base_similarity(**given) == pytest.approx([1.0] * 4, abs=1e-5)
    # The judge sees in the base's images what it saw in them before.
    assert images.joint_accuracy(**given) == [1.0] * 4
