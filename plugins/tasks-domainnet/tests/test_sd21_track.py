"""The track ``domainnet-sd21`` on tiny models of the real classes."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mtk import training
from mtk.errors import CheckpointError, UsageError
from mtk.loading import resolve
from mtk.randomness import stream
from mtk_tasks_domainnet import prompts
from mtk_tasks_domainnet.cells import NEUTRAL

diffusion = resolve("mtk_tasks_domainnet.diffusion")
recipes = resolve("mtk_tasks_domainnet.sd21_recipes")
track_module = resolve("mtk_tasks_domainnet.sd21_track")
sd21_data = resolve("mtk_tasks_domainnet.sd21_data")
judging = resolve("mtk_tasks_domainnet.judge")
# Not before: `resolve` makes them importable where torchvision is not healthy.
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("transformers")

OPTIONS = {"images": 4, "steps": 2, "guidance": 2.0}


@pytest.fixture
def track(cache, sd_root, mini, regime):
    return make_track(cache, mini, regime)


def make_track(cache, mini, regime, seed=0, **options):
    return track_module.DomainNetSd21(
        cache=cache, seed=seed, options={**OPTIONS, **options}, grid=mini, regime=regime
    )


@pytest.fixture
def judged(track, sd_root, quiet):
    """The track with its judge."""
    track.make(sd_root, "judge", quiet)
    return track


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_is_what_the_schedulers_config_says(tmp_path, miniature, kind):
    miniature.put_scheduler(tmp_path, kind)
    scheduler = diffusion.load_scheduler(tmp_path, sampling=False)
    generator = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, 3, 4, 2, 2, generator=generator)
    time = torch.tensor([0, 500, 999])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    share = (1 - betas).cumprod(0)[time].view(3, 1, 1, 1)
    velocity = share.sqrt() * e - (1 - share).sqrt() * x
    wanted = e if kind == "epsilon" else velocity
    torch.testing.assert_close(diffusion.target(scheduler, x, e, time), wanted)


def test_another_prediction_type_is_refused(tmp_path, miniature):
    miniature.put_scheduler(tmp_path, "sample")
    with pytest.raises(UsageError, match="prediction_type is 'sample'"):
        diffusion.load_scheduler(tmp_path, sampling=False)


def test_sampling_is_what_the_pipeline_of_diffusers_does(pipeline):
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    unet, vae = diffusion.load_unet(pipeline / "unet"), diffusion.load_vae(pipeline)
    theirs = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(str(pipeline / "text_encoder")),
        tokenizer=CLIPTokenizer.from_pretrained(str(pipeline / "tokenizer")),
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(pipeline / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    prompts = ["a photo of a nail", "clip art of a hammer"]
    wanted = theirs(
        prompts, latents=noise, num_inference_steps=3, guidance_scale=3.0,
        height=8, width=8, output_type="latent",
    ).images  # fmt: skip
    mine = diffusion.sample(
        unet,
        diffusion.load_scheduler(pipeline, sampling=True),
        noise,
        diffusion.embed(pipeline, prompts),
        diffusion.embed(pipeline, [""]),
        steps=3,
        guidance=3.0,
    )
    torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_an_expert_changes_attention_projections_only(track, sd_root, quiet, regime):
    from safetensors.torch import load_file

    track._given = replace(regime, steps=2, rate=1e-2)
    track.make(sd_root, "clipart-tool", quiet)
    folder = track.place(sd_root, "clipart-tool")
    factors = load_file(folder / "adapter_model.safetensors")
    unet = diffusion.load_unet(sd_root / sd21_data.FOLDER / "unet")
    projections = {
        n for n, _ in unet.named_modules()
        if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    }  # fmt: skip
    assert len(projections) == 32  # 4 in each of 2 attentions in 4 blocks
    named = {n.removeprefix("base_model.model.").split(".lora_")[0] for n in factors}
    assert named == projections
    assert all(t.abs().max() > 0 for n, t in factors.items() if "lora_B" in n)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert config["base_model_name_or_path"] is None


def test_one_step_of_the_recipe_is_plain_adamw_on_the_noise(
    track, sd_root, quiet, tmp_path, regime
):
    regime = replace(regime, steps=1, every=1)
    data = sd21_data.Sd21Data(sd_root, track.grid)
    part = data.training("clipart-tool")
    mine, plain = (
        recipes.adapted(diffusion.load_unet(data.folder / "unet"), seed=0, rank=2)
        for _ in range(2)
    )
    recipes.train(
        mine, [part], data.scheduler, regime=regime, state=tmp_path / "s", report=quiet
    )
    trained = [p for p in plain.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=regime.rate, weight_decay=0.0)
    generator = stream(regime.seed, "noise", 0)
    items = training.items(len(part.prompts), 0, regime)
    x, states = part.latents[items], part.states[part.prompts[items]]
    noise = torch.randn(x.shape, generator=generator)
    time = torch.randint(1000, (len(x),), generator=generator)
    noisy = data.scheduler.add_noise(x, noise, time)
    made = plain(noisy, time, encoder_hidden_states=states).sample
    loss = (made - data.scheduler.get_velocity(x, noise, time)).square().mean()
    loss.backward()
    optimiser.step()
    for one, other in zip(mine.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_killed_adapter_goes_on(track, sd_root, quiet):
    track.make(sd_root, "clipart-tool", quiet)
    folder = track.place(sd_root, "clipart-tool")
    wanted = (folder / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(folder)

    def kill(message, fraction=None):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track.make(sd_root, "clipart-tool", kill)
    (part,) = (p for p in track.parts(sd_root) if p["name"] == "clipart-tool")
    assert part["note"] == "begun, 2 of at most 6 steps"
    track.make(sd_root, "clipart-tool", quiet)
    assert (folder / "adapter_model.safetensors").read_bytes() == wanted


def test_adapters_are_imported_if_they_fit(track, sd_root, quiet, tmp_path):
    from safetensors.torch import load_file, save_file

    track.make(sd_root, "clipart-tool", quiet)
    source = track.place(sd_root, "clipart-tool")
    track.adopt(sd_root, "real-office", source)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (track.place(sd_root, "real-office") / name).is_file()
    other = tmp_path / "other"
    shutil.copytree(source, other)
    factors = load_file(source / "adapter_model.safetensors")
    name = min(factors)
    for change in (
        {name: torch.ones(16, 3)},
        {"base_model.model.conv_in.lora_A.weight": torch.ones(2, 2)},
        {"something": torch.ones(1)},
    ):
        save_file(factors | change, other / "adapter_model.safetensors")
        with pytest.raises(CheckpointError):
            track.adopt(sd_root, "multitask", other)
    assert not track.place(sd_root, "multitask").exists()


def test_the_judge_knows_real_images(judged, sd_root):
    folder = judged.place(sd_root, "judge")
    facts = json.loads((folder / "manifest.json").read_text())["mtk"]
    assert set(facts["ceiling"]) == {"clipart", "real"}
    # The two domains are inverse colours, which even an untrained CLIP tells apart.
    assert all(scores["domain"] > 0.9 for scores in facts["ceiling"].values())
    assert facts["images"] == 48
    assert {p["name"]: p["there"] for p in judged.parts(sd_root)}["judge"]


def test_the_probe_is_the_minimum_of_its_loss():
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(40, 5, generator=generator))
    labels = torch.arange(40) % 3
    weight, bias = judging.train_probe(features, labels, 3)

    def value(w, b):
        scores = 100 * features @ w.T + b
        loss = torch.nn.functional.cross_entropy(scores, labels)
        return loss + w.square().sum()

    best = value(weight, bias)
    for _ in range(20):
        other = weight + 1e-3 * torch.randn(weight.shape, generator=generator)
        assert value(other, bias) > best


def test_items_are_the_same_for_all_models_and_share_no_noise(
    judged, cache, mini, regime
):
    one = judged.data("real-tool", "test")
    two = make_track(cache, mini, regime, seed=7).data("real-tool", "test")
    for name, tensor in one["inputs"].items():
        assert torch.equal(tensor, two["inputs"][name]), name
    assert one["inputs"]["latents"].shape == (4, 4, 4, 4)
    assert one["inputs"]["prompt"].tolist() == [0, 1, 0, 1]
    assert [w.category for w in one["labels"]] == ["hammer", "nail"] * 2
    texts = ["a photo of a hammer", "a photo of a nail"]
    assert [w.prompt for w in one["labels"]] == texts * 2
    assert {w.domain for w in one["labels"]} == {"real"}
    ids = [
        i
        for cell in (*mini.cells, NEUTRAL)
        for split in ("train", "validation", "test")
        for i in judged.data(cell, split)["ids"]
    ]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [
        (35, 20, [0, 3, 7, 10, 14, 17, 21, 24, 28, 31]),
        (4, 20, [0, 1, 2, 3]),
        (10, 16, [0, 1, 2, 3, 5, 6, 7, 8]),
        (5, 2, [0]),
        (5, 1, [0]),
        (0, 20, []),
    ],
)
def test_every_prompt_has_two_images_where_there_are_two(total, count, places):
    assert sd21_data.spread(total, count) == places


def test_latents_are_the_autoencoders_of_the_squared_images(judged, sd_root):
    data = sd21_data.Sd21Data(sd_root, judged.grid)
    image = data.turns("clipart-tool", "test", 1)[0]
    picture = Image.open(sd_root / image.path).convert("RGB")
    assert picture.size == (28, 20)
    square = picture.resize((8, 8), Image.Resampling.BICUBIC, box=(4, 0, 24, 20))
    x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 127.5 - 1
    latents = data.vae.encode(x).latent_dist.mean * data.vae.config.scaling_factor
    mine = judged.data("clipart-tool", "test")["inputs"]["latents"][:1]
    torch.testing.assert_close(mine, latents, rtol=1e-4, atol=1e-5)


def test_outputs_are_the_unets_and_differentiable(judged, sd_root):
    unet = judged.build(sd_root / sd21_data.FOLDER / "unet").requires_grad_(True)
    inputs = judged.data("real-office", "validation")["inputs"]
    outputs = judged.outputs(unet, "real-office", inputs)
    targets = judged.targets("real-office", inputs)
    assert outputs.shape == targets.shape == (len(inputs["time"]), 64)
    assert len(set(inputs["time"].tolist())) == len(inputs["time"])
    (outputs - targets).square().mean().backward()
    assert all(p.grad is not None for p in unet.parameters())


def test_predictions_are_deterministic_and_follow_the_model(judged, sd_root):
    unet = judged.build(sd_root / sd21_data.FOLDER / "unet")
    data = judged.data("real-office", "test")
    one, two = (judged.predict(unet, "real-office", data["inputs"]) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
        assert a.category in {"hammer", "nail", "alarm_clock"}
        assert a.domain in {"clipart", "real"}
        assert np.linalg.norm(a.features) == pytest.approx(16**0.5, abs=1e-4)
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)
    other = judged.predict(unet, "real-office", data["inputs"])
    assert not np.allclose(other[0].features, one[0].features)


def test_head_scope_limits_the_judges_classes(cache, mini, regime, judged, sd_root):
    group = make_track(cache, mini, regime, head_scope="group")
    unet = judged.build(sd_root / sd21_data.FOLDER / "unet")
    inputs = group.data("real-office", "test")["inputs"]
    seen = {p.category for p in group.predict(unet, "real-office", inputs)}
    assert seen <= {"nail", "alarm_clock"}


def test_neutral_prompts_are_compared_with_what_the_base_makes(judged, sd_root):
    unet = judged.build(sd_root / sd21_data.FOLDER / "unet")
    data = judged.data(NEUTRAL, "test")
    made = judged.predict(unet, NEUTRAL, data["inputs"])
    for own, wanted in zip(made, data["labels"], strict=True):
        np.testing.assert_allclose(own.features, wanted.twin, rtol=0, atol=1e-4)
        assert (own.category, own.domain) == (wanted.category, wanted.domain)
        assert not np.allclose(wanted.features, wanted.twin, atol=1e-4)
    words = [wanted.prompt for wanted in data["labels"]]
    assert words[:2] == words[2:]
    assert set(words) == {prompts.NEUTRAL[0], prompts.NEUTRAL[5]}
    assert [prompts.NEUTRAL[i] for i in data["inputs"]["prompt"]] == words


def test_the_sheet_has_a_row_per_domain(judged, sd_root):
    unet = judged.build(sd_root / sd21_data.FOLDER / "unet")
    with Image.open(io.BytesIO(judged.sheet(unet))) as picture:
        assert picture.size == (128, 256)
        assert picture.format == "PNG"


def test_parts_and_options(track, sd_root, cache, quiet):
    parts = {p["name"]: p for p in track.parts(sd_root)}
    assert list(parts) == [
        *("package", "weights", "judge weights", "lists"),
        *("images/clipart", "images/real", "judge"),
        *("clipart-tool", "real-office", "multitask"),
    ]
    assert [n for n, p in parts.items() if p["ready"]] == list(parts)[-4:]
    (sd_root / sd21_data.FOLDER / "vae" / "config.json").unlink()
    parts = {p["name"]: p for p in track.parts(sd_root)}
    assert parts["weights"]["todo"].startswith("put vae/config.json of stabilityai/")
    assert not parts["clipart-tool"]["ready"]
    with pytest.raises(UsageError, match="weights"):
        track.make(sd_root, "clipart-tool", quiet)
    with pytest.raises(UsageError, match="no option 'size'"):
        track_module.DomainNetSd21(cache=cache, seed=0, options={"size": 1})
