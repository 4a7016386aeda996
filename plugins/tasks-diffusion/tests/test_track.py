"""The track ``digits-diffusion``: its data, its models, its noise and its cache."""

from __future__ import annotations

import io
import itertools
import json
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mtk.folders import sha256
from mtk.loading import resolve
from mtk_tasks_diffusion import cells, data, sheet
from mtk_tasks_diffusion.make_base import data_hash
from mtk_tasks_diffusion.track import ASSET, JUDGE, DigitsDiffusion

if TYPE_CHECKING:
    from pathlib import Path

# `resolve` makes diffusers importable where torchvision is not healthy.
model = resolve("mtk_tasks_diffusion.model")
recipes = resolve("mtk_tasks_diffusion.recipes")
judge = resolve("mtk_tasks_diffusion.judge")
ITEMS = resolve("mtk_tasks_diffusion.items:ITEMS")
NEUTRAL_ITEMS = resolve("mtk_tasks_diffusion.items:NEUTRAL_ITEMS")

QUICK = recipes.Regime(steps=2, multitask_steps=2, batch=8, pretrain_steps=2)
TASKS = (*cells.CELLS, cells.NEUTRAL)


def ignore(message: str, fraction: float) -> None:
    """A report that nobody reads."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two training steps instead of many."""
    monkeypatch.setitem(recipes.tuned.__kwdefaults__, "regime", QUICK)


@pytest.fixture(scope="module")
def base() -> Any:
    return model.load(ASSET)


def track(cache: Path, seed: int = 0) -> DigitsDiffusion:
    return DigitsDiffusion(cache=cache, seed=seed, options={})


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


# ------------------------------------------------------------------------ grid and data


def test_the_diagonal_is_held_in() -> None:
    held_in = [cells.parse(cell) for cell in cells.HELD_IN]
    assert tuple(style for style, _ in held_in) == cells.STYLES
    assert tuple(group for _, group in held_in) == tuple(cells.GROUPS)
    assert len(cells.GENERALIZATION) == 20
    assert not set(cells.HELD_IN) & set(cells.GENERALIZATION)


def test_splits_are_disjoint_by_image_across_all_cells() -> None:
    images = {
        name: set(np.concatenate([data.of_cell(c, name)[2] for c in cells.CELLS]))
        for name in cells.SPLITS
    }
    for one, other in itertools.combinations(cells.SPLITS, 2):
        assert not images[one] & images[other]
    assert sum(map(len, images.values())) == 1797


def test_same_images_in_every_style_and_styles_look_different() -> None:
    drawn = [data.images(style, (4, 5), "test") for style in cells.STYLES]
    for one, other in itertools.combinations(drawn, 2):
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])
        assert np.abs(one[0] - other[0]).mean() > 0.2
    assert all(np.abs(pixels).max() <= 1 for pixels, _, _ in drawn)


@pytest.mark.parametrize("split", cells.SPLITS)
@pytest.mark.parametrize("task", ["scanlines-89", "plain-23", cells.NEUTRAL])
def test_data_has_the_promised_shapes(tmp_path: Path, task: str, split: str) -> None:
    part = track(tmp_path).data(task, split)
    n = NEUTRAL_ITEMS if task == cells.NEUTRAL else ITEMS[split]
    inputs = part["inputs"]
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "words": (n, 2),
        "noise": (n, 1, 8, 8),
        "image": (n, 1, 8, 8),
        "time": (n,),
    }
    assert len(part["labels"]) == len(part["ids"]) == n
    assert all(type(number) is int for number in part["ids"])
    assert inputs["time"].min() > 0
    assert inputs["time"].max() < 1
    assert inputs["time"].mean().item() == pytest.approx(0.5)


def test_prompts_name_the_digit_and_style_of_the_real_image(tmp_path: Path) -> None:
    part = track(tmp_path).data("faint-67", "test")
    seen = [(wanted.category, wanted.domain) for wanted in part["labels"]]
    assert seen == [("six", "faint"), ("seven", "faint")] * (ITEMS["test"] // 2)
    words = [[cells.WORDS[i] for i in row] for row in part["inputs"]["words"].tolist()]
    assert words[:2] == [["six", "faint"], ["seven", "faint"]]
    found = track(tmp_path)._judge.verdict(part["inputs"]["image"]).digits
    hits = np.mean(found.numpy() == [6, 7] * (ITEMS["test"] // 2))
    assert hits > 0.9  # else images and prompts do not belong together


def test_data_are_the_same_in_every_run_and_for_every_seed(tmp_path: Path) -> None:
    for task in ("textured-45", cells.NEUTRAL):
        one, two = (track(tmp_path, seed).data(task, "test") for seed in (0, 7))
        assert one["ids"] == two["ids"]
        for name, tensor in one["inputs"].items():
            assert torch.equal(tensor, two["inputs"][name]), name


def test_no_noise_is_used_twice(tmp_path: Path) -> None:
    ids, noise = [], []
    for task, split in itertools.product(TASKS, ("validation", "test")):
        part = track(tmp_path).data(task, split)
        ids += part["ids"]
        noise.append(part["inputs"]["noise"].flatten(1))
    together = torch.cat(noise)
    assert len(set(ids)) == len(ids) == len(torch.unique(together, dim=0))
    assert max(ids) < 2**53
    assert abs(together.mean().item()) < 0.02
    assert abs(together.std().item() - 1) < 0.02


def test_the_noise_is_the_one_that_was_published(tmp_path: Path) -> None:
    """Records are paired by noise; a change of it needs a new version of the track."""
    part = track(tmp_path).data("plain-01", "test")
    assert part["ids"][0] == 8245649172512851
    torch.testing.assert_close(
        part["inputs"]["noise"][0, 0, 0, :3],
        torch.tensor([-0.0482, -0.5305, 0.237]),
        rtol=0,
        atol=1e-4,
    )


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no cell named"):
        track(tmp_path).data("plain-99", "test")
    with pytest.raises(ValueError, match="no split named"):
        track(tmp_path).data("plain-01", "pretrain")
    with pytest.raises(ValueError, match="no style named"):
        data.render(np.zeros((1, 8, 8), np.float32), "cubist")
    with pytest.raises(ValueError, match="no option 'guidance'"):
        DigitsDiffusion(cache=tmp_path, seed=0, options={"guidance": 2})


# ------------------------------------------------------------------- what the package has


@pytest.mark.parametrize("folder", [ASSET, JUDGE])
def test_shipped_weights_match_their_provenance(folder: Path) -> None:
    facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    for name, digest in facts["sha256"].items():
        assert sha256(folder / name)["sha256"] == digest
    assert facts["data_sha256"] == data_hash()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000


def test_shipped_base_has_the_regime_of_the_recipe() -> None:
    facts = json.loads((ASSET / "provenance.json").read_text(encoding="utf-8"))
    assert facts["regime"] == {
        name: getattr(recipes.REGIME, name) for name in facts["regime"]
    }


def test_judge_is_good_on_real_images_it_has_not_seen(tmp_path: Path) -> None:
    ceiling = track(tmp_path).ceiling()
    assert set(ceiling) == {*cells.STYLES, "all"}
    assert ceiling["all"]["joint"] > 0.95
    assert min(ceiling[style]["joint"] for style in cells.STYLES) > 0.9
    facts = json.loads((JUDGE / "provenance.json").read_text(encoding="utf-8"))
    assert ceiling["all"]["joint"] == pytest.approx(
        facts["ceiling"]["all"]["joint"], abs=0.003
    )


def test_judge_trains_and_repeats_itself() -> None:
    one, two = (judge.train(3, steps=40) for _ in range(2))
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert judge.ceiling(one, "validation")["all"]["domain"] > 0.9


# ---------------------------------------------------------------------------- generation


def test_sampling_integrates_the_velocity_by_equal_steps() -> None:
    """Against Euler's method written out, for a velocity that is known."""

    def unet(
        sample: torch.Tensor, time: torch.Tensor, states: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor]:
        t = time[:, None, None, None] / 1000
        return (0.3 * sample + t,)

    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 4
    words = torch.zeros(3, 2, dtype=torch.int64)
    x = noise.double()
    for step in range(8):
        x = x - (0.3 * x + (1 - step / 8)) / 8
    got = model.sample(unet, noise, words, steps=8)
    torch.testing.assert_close(got.double(), x.clamp(-1, 1), rtol=1e-5, atol=1e-6)
    assert not torch.equal(got, got.round())


def test_guidance_goes_from_the_blank_prompt_through_the_asked_one() -> None:
    unet = model.build(seed=2)
    noisy = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    time, words = (
        torch.tensor([0.2, 0.5, 0.9]),
        torch.tensor([[0, 10], [3, 12], [9, 14]]),
    )
    blank = torch.full_like(words, cells.WORDS.index(cells.BLANK))
    with torch.no_grad():
        asked, plain = (model.velocity(unet, noisy, time, w) for w in (words, blank))
        for guidance, want in (
            (0.0, plain),
            (1.0, asked),
            (3.0, 3 * asked - 2 * plain),
        ):
            got = model.guided(unet, noisy, time, words, guidance)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (asked - plain).abs().max() > 1e-3


def test_training_target_and_outputs_are_of_one_flow(tmp_path: Path, base: Any) -> None:
    """The path from image to noise is straight, and its slope is the target."""
    instance = track(tmp_path)
    inputs = instance.data("inverted-23", "validation")["inputs"]
    early, late = (
        recipes.mix(inputs["image"], inputs["noise"], torch.full((24,), t))
        for t in (0.25, 0.75)
    )
    slope = (late - early).flatten(1) / 0.5
    torch.testing.assert_close(slope, instance.targets("inverted-23", inputs))
    outputs = instance.outputs(base, "inverted-23", inputs)
    assert outputs.shape == (24, 64)
    assert outputs.requires_grad
    loss = (outputs - instance.targets("inverted-23", inputs)).square().mean()
    assert loss < 0.5 * instance.targets("inverted-23", inputs).square().mean()


def test_predictions_repeat_and_do_not_depend_on_the_batch(
    tmp_path: Path, base: Any
) -> None:
    instance = track(tmp_path)
    inputs = instance.data("plain-01", "test")["inputs"]
    few = {name: tensor[:5] for name, tensor in inputs.items()}
    one, two = (instance.predict(base, "plain-01", inputs) for _ in range(2))
    short = instance.predict(base, "plain-01", few)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
    for a, b in zip(one[:5], short, strict=True):
        np.testing.assert_allclose(a.features, b.features, atol=1e-3)
        assert (a.category, a.domain) == (b.category, b.domain)
    assert one[0].features.shape == (64,)
    assert all(np.square(a.features).mean() == pytest.approx(1) for a in one)
    assert np.std([a.features for a in one], axis=0).mean() > 0.1


def share_right(track: DigitsDiffusion, model: Any, task: str, split: str) -> float:
    """How often the judge sees both what a task asks for."""
    part = track.data(task, split)
    pairs = zip(track.predict(model, task, part["inputs"]), part["labels"], strict=True)
    hits = [p.category == r.category and p.domain == r.domain for p, r in pairs]
    return float(np.mean(hits))


def test_base_is_the_measure_of_neutral_prompts(tmp_path: Path, base: Any) -> None:
    instance = track(tmp_path)
    assert share_right(instance, base, cells.NEUTRAL, "test") == 1.0
    part = instance.data(cells.NEUTRAL, "test")
    made = instance.predict(base, cells.NEUTRAL, part["inputs"])
    for mine, wanted in zip(made, part["labels"], strict=True):
        np.testing.assert_allclose(mine.features, wanted.twin, atol=1e-3)
        assert np.abs(mine.features - wanted.features).max() > 0.1  # of other noise


def test_base_knows_the_grid_faintly(tmp_path: Path, base: Any) -> None:
    instance = track(tmp_path)
    shares = [share_right(instance, base, cell, "validation") for cell in cells.CELLS]
    assert 0.1 < np.mean(shares) < 0.6  # chance is 0.02


def test_sheet_shows_the_first_test_items(tmp_path: Path, base: Any) -> None:
    instance = track(tmp_path)
    png = instance.sheet(base)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert (height, width) == sheet.size(5, 10, 8)
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(png))
    pixels = np.asarray(image)
    part = instance.data("inverted-45", "test")
    few = {name: tensor[:2] for name, tensor in part["inputs"].items()}
    drawn = model.sample(base, few["noise"], few["words"])[:, 0].numpy()
    for column, expected in zip((4, 5), drawn, strict=True):
        top, left = sheet.size(1, column, 8)
        shown = pixels[top : top + 40 : 5, left : left + 40 : 5] / 127.5 - 1
        np.testing.assert_allclose(shown, expected, atol=0.01)


# ------------------------------------------------------------------------------ training


def test_building_leaves_the_global_random_state_alone(base: Any) -> None:
    before = torch.get_rng_state()
    model.build(seed=3)
    model.load(ASSET)
    recipes.tuned(base, ["plain-01"], seed=4, regime=QUICK)
    assert torch.equal(before, torch.get_rng_state())


def test_pretraining_repeats_itself_and_moves() -> None:
    one, two = (recipes.pretrain(5, QUICK).state_dict() for _ in range(2))
    start = model.build(5).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv_in.weight"], start["conv_in.weight"])


def test_pretraining_is_still_the_one_that_made_the_base() -> None:
    """The loss after some steps, as the loop had it that made the shipped bytes."""
    said = []
    regime = recipes.Regime(pretrain_steps=3)
    recipes.pretrain(0, regime, lambda text, _: said.append(text))
    assert float(said[-1].split("loss ")[1]) == pytest.approx(1.361, abs=5e-3)


def test_a_training_step_is_the_gradient_of_the_flow_loss(base: Any) -> None:
    """One step of AdamW from zero moves every entry of B against its gradient's sign."""
    regime = recipes.Regime(steps=1, batch=8, rate=1e-2)
    step = recipes.tuned(base, ["faint-67"], seed=1, regime=regime)
    moved = {n: p.detach() for n, p in step.named_parameters() if "lora_B" in n}
    assert moved
    for name, tensor in moved.items():
        # B starts at zero, and Adam's first step has the length of the rate.
        assert tensor.abs().max() <= 1e-2 * 1.001, name
        assert (tensor.abs() > 0.9e-2).double().mean() > 0.5, name


def test_training_lowers_the_loss_on_its_cell(tmp_path: Path, base: Any) -> None:
    regime = recipes.Regime(steps=12, batch=16)
    tuned = recipes.tuned(base, ["faint-67"], seed=0, regime=regime)
    instance = track(tmp_path)
    inputs = instance.data("faint-67", "validation")["inputs"]
    target = instance.targets("faint-67", inputs)
    with torch.no_grad():
        before, after = (
            (instance.outputs(m, "faint-67", inputs) - target).square().mean()
            for m in (base, tuned)
        )
    assert after < 0.95 * before


# --------------------------------------------------------------------------------- cache


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
        config = (path / "adapter_config.json" for path in (mine, same))
        assert len({file.read_bytes() for file in config}) == 1
    assert one["base"] == other["base"]
    assert len({weights(path) for path in one["experts"]}) == len(cells.HELD_IN)
    assert not list(tmp_path.rglob("*partial*"))


def test_second_prepare_neither_trains_nor_imports_torch(
    tmp_path: Path, quick: None
) -> None:
    made = track(tmp_path).prepare(ignore)
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    script = f"""
import pathlib, sys
from mtk_tasks_diffusion.track import DigitsDiffusion
t = DigitsDiffusion(cache=pathlib.Path({str(tmp_path)!r}), seed=0, options={{}})
print(t.prepare(lambda message, fraction: None)["multitask"])
assert not {{"torch", "diffusers", "peft", "sklearn"}} & set(sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(made["multitask"])
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]


def test_damaged_adapter_is_made_again_and_the_others_stay(
    tmp_path: Path, quick: None
) -> None:
    made = track(tmp_path).prepare(ignore)
    whole = weights(made["multitask"])
    kept = [path.stat().st_mtime_ns for path in made["experts"]]
    (made["multitask"] / "adapter_model.safetensors").write_bytes(whole[:-1])
    again = track(tmp_path).prepare(ignore)
    assert weights(again["multitask"]) == whole
    assert kept == [path.stat().st_mtime_ns for path in again["experts"]]
