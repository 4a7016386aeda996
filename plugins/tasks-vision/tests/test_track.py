"""The track ``digits-clip``: its data, its models and its cache."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mtk.folders import sha256
from mtk.loading import resolve
from mtk_tasks_vision import cells, data
from mtk_tasks_vision.track import ASSET, DigitsClip

if TYPE_CHECKING:
    from pathlib import Path

# `resolve` makes open_clip importable where torchvision is not healthy.
model = resolve("mtk_tasks_vision.model")
recipes = resolve("mtk_tasks_vision.recipes")

QUICK = recipes.Regime(pretrain_steps=2, steps=2, multitask_steps=2, batch=16)


def ignore(message: str, fraction: float) -> None:
    """A report that nobody reads."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two training steps instead of forty."""
    monkeypatch.setitem(recipes.tuned.__kwdefaults__, "regime", QUICK)


def track(cache: Path, seed: int = 0, **options: object) -> DigitsClip:
    return DigitsClip(cache=cache, seed=seed, options=options)


def weights(folder: Path) -> bytes:
    return (folder / "open_clip_model.safetensors").read_bytes()


def test_every_style_has_one_held_in_cell_and_groups_alternate() -> None:
    held_in = [cells.parse(cell) for cell in cells.HELD_IN]
    assert tuple(style for style, _ in held_in) == cells.STYLES
    assert [group for _, group in held_in] == ["low", "high"] * 3
    assert set(cells.HELD_IN) | set(cells.GENERALIZATION) == set(cells.CELLS)
    assert not set(cells.HELD_IN) & set(cells.GENERALIZATION)


def test_splits_are_disjoint_by_image_across_all_cells() -> None:
    names = ("pretrain", *cells.SPLITS)
    images = {
        name: set(np.concatenate([data.examples(c, name).ids for c in cells.CELLS]))
        for name in names
    }
    for one, other in itertools.combinations(names, 2):
        assert not images[one] & images[other]
    assert sum(map(len, images.values())) == 1797


def test_same_images_in_every_style() -> None:
    for group, split in itertools.product(cells.GROUPS, cells.SPLITS):
        first = data.examples(f"plain-{group}", split)
        for style in cells.STYLES:
            part = data.examples(f"{style}-{group}", split)
            np.testing.assert_array_equal(part.ids, first.ids)
            np.testing.assert_array_equal(part.labels, first.labels)


@pytest.mark.parametrize("split", cells.SPLITS)
@pytest.mark.parametrize("cell", cells.CELLS)
def test_cells_are_complete_and_balanced(cell: str, split: str) -> None:
    part = data.examples(cell, split)
    _, group = cells.parse(cell)
    digits, counts = np.unique(part.labels, return_counts=True)
    assert tuple(digits) == cells.GROUPS[group]
    assert counts.min() >= 15
    assert counts.max() - counts.min() <= 10
    assert part.inputs.shape == (len(part.ids), 3, data.SIZE, data.SIZE)
    assert np.isfinite(part.inputs).all()


def test_styles_look_different() -> None:
    drawn = [data.examples(f"{style}-low", "train").inputs for style in cells.STYLES]
    for one, other in itertools.combinations(drawn, 2):
        assert np.abs(one - other).mean() > 0.3


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no cell named"):
        data.examples("plain-middle", "train")
    with pytest.raises(ValueError, match="no split named"):
        data.examples("plain-low", "valid")
    with pytest.raises(ValueError, match="no style named"):
        data.render(np.zeros((1, 16, 16)), "cubist", np.zeros((1, 16, 16)))


def test_tokens_are_bytes_between_start_and_end() -> None:
    tokens = model.tokenize(["a", "é"])
    assert tokens[0, :4].tolist() == [256, 97, 257, 0]
    assert tokens[1, :5].tolist() == [256, 195, 169, 257, 0]
    with pytest.raises(ValueError, match="bytes"):
        model.tokenize(["x" * model.CONTEXT])


def test_model_survives_saving_and_open_clip_reads_the_folder(tmp_path: Path) -> None:
    made = model.build(seed=1)
    model.save(made, tmp_path / "m")
    images = torch.randn(2, 3, 16, 16)
    texts = model.tokenize(["one", "two"])
    loaded = model.load(tmp_path / "m")

    open_clip = resolve("open_clip")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'm'}").eval()
    for other in (loaded, theirs):
        torch.testing.assert_close(
            other.encode_image(images), made.encode_image(images)
        )
        torch.testing.assert_close(other.encode_text(texts), made.encode_text(texts))


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    model.build(seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_pretraining_repeats_itself() -> None:
    one, two = (recipes.pretrain(5, QUICK).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_pretraining_is_still_the_one_that_made_the_base() -> None:
    """The loss after some steps, as the loop had it that made the shipped bytes."""
    said = []
    regime = recipes.Regime(pretrain_steps=6)
    recipes.pretrain(0, regime, lambda text, _: said.append(text))
    assert float(said[-1].split("loss ")[1]) == pytest.approx(2.550, abs=5e-3)


def test_experts_change_the_vision_tower_only() -> None:
    base = model.load(ASSET)
    expert = recipes.tuned(base, ["faint-high"], seed=1, regime=QUICK)
    changed = {
        name
        for name, tensor in expert.state_dict().items()
        if not torch.equal(tensor, base.state_dict()[name])
    }
    assert changed
    assert all(name.startswith("visual.") for name in changed)


def test_one_cell_has_an_experts_steps_and_several_have_the_multitask_models() -> None:
    base = model.load(ASSET)
    regime = recipes.Regime(steps=0, multitask_steps=1, batch=4)
    for chosen, moves in ((["faint-high"], False), (["faint-high", "plain-low"], True)):
        made = recipes.tuned(base, chosen, seed=1, regime=regime)
        assert torch.equal(made.visual.proj, base.visual.proj) is not moves


def test_head_scope_reaches_training() -> None:
    base = model.load(ASSET)
    one, two = (
        recipes.tuned(base, ["faint-high"], seed=1, head_scope=scope, regime=QUICK)
        for scope in cells.HEAD_SCOPES
    )
    name = "visual.proj"
    assert not torch.equal(one.state_dict()[name], two.state_dict()[name])


def test_packaged_base_matches_its_provenance() -> None:
    facts = json.loads((ASSET / "provenance.json").read_text(encoding="utf-8"))
    for name, digest in facts["sha256"].items():
        assert sha256(ASSET / name)["sha256"] == digest
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < 1_500_000
    assert facts["regime"] == {
        field: getattr(recipes.REGIME, field) for field in facts["regime"]
    }


def test_packaged_base_knows_the_grid_faintly(tmp_path: Path) -> None:
    instance, base = track(tmp_path), model.load(ASSET)
    scores = []
    for cell in cells.CELLS:
        part = instance.data(cell, "validation")
        hits = torch.tensor(instance.predict(base, cell, part["inputs"]))
        scores.append((hits == part["labels"]).double().mean().item())
    assert min(scores) > 0.25  # chance is 0.2
    assert 0.5 < sum(scores) / len(scores) < 0.85


def test_prepare_is_deterministic_and_seeded(tmp_path: Path, quick: None) -> None:
    one = track(tmp_path / "a").prepare(ignore)
    two = track(tmp_path / "b").prepare(ignore)
    other = track(tmp_path / "a", seed=1).prepare(ignore)
    assert [path.name for path in one["experts"]] == list(cells.HELD_IN)
    for mine, same, unlike in zip(
        [*one["experts"], one["multitask"]],
        [*two["experts"], two["multitask"]],
        [*other["experts"], other["multitask"]],
        strict=True,
    ):
        assert weights(mine) == weights(same) != weights(unlike)
    assert one["base"] == other["base"]
    assert len({weights(path) for path in one["experts"]}) == len(cells.HELD_IN)
    assert not list(tmp_path.rglob("*.partial-*"))


def test_second_prepare_neither_trains_nor_imports_torch(
    tmp_path: Path, quick: None
) -> None:
    made = track(tmp_path).prepare(ignore)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    script = f"""
import pathlib, sys
from mtk_tasks_vision.track import DigitsClip
t = DigitsClip(cache=pathlib.Path({str(tmp_path)!r}), seed=0, options={{}})
print(t.prepare(lambda message, fraction: None)["multitask"])
assert not {{"torch", "open_clip", "sklearn", "numpy"}} & set(sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(made["multitask"])
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]


def test_only_what_is_damaged_is_made_again(tmp_path: Path, quick: None) -> None:
    made = track(tmp_path).prepare(ignore)
    whole = weights(made["multitask"])
    kept = [path.stat().st_mtime_ns for path in made["experts"]]
    (made["multitask"] / "open_clip_model.safetensors").write_bytes(whole[:-1])
    again = track(tmp_path).prepare(ignore)
    assert weights(again["multitask"]) == whole
    assert kept == [path.stat().st_mtime_ns for path in again["experts"]]


def test_head_scopes_and_seeds_share_the_base_only(tmp_path: Path, quick: None) -> None:
    one, two = (
        track(tmp_path, head_scope=scope).prepare(ignore) for scope in cells.HEAD_SCOPES
    )
    assert one["base"] == two["base"]
    assert not set(one["experts"]) & set(two["experts"])
    assert one["multitask"] != two["multitask"]


@pytest.mark.parametrize(("scope", "number"), [("group", 5), ("joint", 10)])
def test_head_scope_decides_the_number_of_classes(
    tmp_path: Path, scope: str, number: int
) -> None:
    instance, base = track(tmp_path, head_scope=scope), model.load(ASSET)
    part = instance.data("outline-high", "test")
    inputs = part["inputs"][:50]
    logits = instance.outputs(base, "outline-high", inputs)
    assert logits.shape == (50, number)
    assert logits.requires_grad
    predicted = instance.predict(base, "outline-high", inputs)
    assert predicted == logits.argmax(dim=1).tolist()
    assert set(part["labels"].tolist()) == set(range(number - 5, number))


def test_data_has_the_promised_types(tmp_path: Path) -> None:
    part = track(tmp_path).data("scanlines-low", "validation")
    assert part["inputs"].dtype == torch.float32
    assert part["labels"].dtype == torch.int64
    assert all(type(image) is int for image in part["ids"])
    assert len(part["inputs"]) == len(part["labels"]) == len(part["ids"]) == 75


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head_scope"):
        track(tmp_path, head_scope="all")
    with pytest.raises(ValueError, match="no option 'scope'"):
        track(tmp_path, scope="group")
    with pytest.raises(ValueError, match="no split"):
        track(tmp_path).data("plain-low", "pretrain")


def test_printed_digits_are_the_bases_ability(tmp_path: Path) -> None:
    instance, base = track(tmp_path), model.load(ASSET)
    parts = {split: instance.data("printed", split) for split in cells.SPLITS}
    test = parts["test"]
    assert torch.equal(test["inputs"], instance.data("printed", "test")["inputs"])
    assert not torch.equal(test["inputs"], parts["validation"]["inputs"])
    assert test["labels"].bincount().tolist() == [30] * 10
    assert len(test["ids"]) == len(test["inputs"]) == 300
    # In every style five of each digit, drawn once.
    assert len(np.unique(test["inputs"].numpy(), axis=0)) == 300
    predicted = torch.tensor(instance.predict(base, "printed", test["inputs"]))
    assert (predicted == test["labels"]).float().mean() > 0.9
    assert instance.classes("printed") == tuple(range(10))
    with pytest.raises(ValueError, match="split"):
        instance.data("printed", "pretrain")
