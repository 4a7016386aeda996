"""What was made from one base is neither handed out nor continued with another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtk.errors import UsageError
from mtk.loading import resolve
from mtk.roots import training_state
from mtk_tasks_domainnet.cells import CIFAR, DOMAINNET

clip_data = resolve("mtk_tasks_domainnet.clip_data")
clip_track = resolve("mtk_tasks_domainnet.clip_track")
sd21_track = resolve("mtk_tasks_domainnet.sd21_track")
VAE = "stable-diffusion-2-1/vae/diffusion_pytorch_model.safetensors"


def make_clip(cache, mini, regime, seed=0, **options):
    return clip_track.DomainNetClip(
        cache=cache, seed=seed, options=options, grid=mini, regime=regime
    )


@pytest.fixture
def track(cache, mini, regime):
    return make_clip(cache, mini, regime)


@pytest.fixture
def sd21(cache, sd_root, mini, regime):
    for library in ("diffusers", "peft", "transformers"):
        pytest.importorskip(library)
    return sd21_track.DomainNetSd21(
        cache=cache, seed=0, options={"images": 4, "steps": 2}, grid=mini, regime=regime
    )


def begin(track, root, name):
    """What a run leaves behind that is killed after its first evaluation."""

    def kill(message, fraction=None):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track.make(root, name, kill)
    assert training_state(track.place(root, name)).is_file()


def part(track, root, name):
    (found,) = (p for p in track.parts(root) if p["name"] == name)
    return found


def first_words(track, root, name):
    """What a run reports first: of step 2 if it begins, of step 4 if it goes on."""
    told = []
    track.make(root, name, lambda text, _share: told.append(text))
    return told[0]


def replace_clip(root, miniature):
    shutil.rmtree(root / clip_data.FOLDER)
    miniature.put_clip(root / clip_data.FOLDER, seed=1)


def change(file):
    """Other numbers of the same names and shapes."""
    save_file({n: t * 1.5 for n, t in load_file(file).items()}, file)


def blacken(root):
    from PIL import Image

    for file in (root / "clipart" / "hammer").iterdir():
        Image.new("RGB", (28, 20)).save(file)


@pytest.mark.parametrize("what", ["base", "images"])
def test_an_unfinished_expert_of_something_else_begins_again(
    track, root, miniature, what
):
    begin(track, root, "clipart-tool")
    if what == "base":
        replace_clip(root, miniature)
    else:
        blacken(root)
    assert "step 2," in first_words(track, root, "clipart-tool")


@pytest.mark.parametrize("what", ["vae", "text_encoder", "unet"])
def test_an_unfinished_adapter_of_another_pipeline_begins_again(sd21, sd_root, what):
    begin(sd21, sd_root, "clipart-tool")
    (file,) = (sd_root / "stable-diffusion-2-1" / what).glob("*.safetensors")
    change(file)
    assert "step 2," in first_words(sd21, sd_root, "clipart-tool")


def test_an_unfinished_expert_of_the_same_goes_on(track, root):
    begin(track, root, "clipart-tool")
    assert "step 4," in first_words(track, root, "clipart-tool")


def test_finished_experts_of_another_base_are_not_handed_out(
    track, root, miniature, quiet, tmp_path
):
    track.make(root, "clipart-tool", quiet)
    track.make(root, "multitask", quiet)
    kept = shutil.copytree(track.place(root, "clipart-tool"), tmp_path / "kept")
    track.adopt(root, "real-office", kept)
    track.prepare(quiet)
    replace_clip(root, miniature)
    for name in ("clipart-tool", "real-office", "multitask"):
        found = part(track, root, name)
        assert not found["there"]
        assert not found["ready"]
        assert found["note"] == "made from another base"
    with pytest.raises(UsageError, match="3 parts are missing"):
        track.prepare(quiet)


def test_adapters_and_the_judge_of_another_base_are_not_handed_out(
    sd21, sd_root, miniature, quiet
):
    sd21.make(sd_root, "judge", quiet)
    sd21.make(sd_root, "clipart-tool", quiet)
    sd21.adopt(sd_root, "real-office", sd21.place(sd_root, "clipart-tool"))
    replace_clip(sd_root, miniature)
    assert part(sd21, sd_root, "judge")["note"] == "made from another base"
    assert part(sd21, sd_root, "clipart-tool")["there"]
    change(sd_root / "stable-diffusion-2-1/unet/diffusion_pytorch_model.safetensors")
    for name in ("clipart-tool", "real-office"):
        assert part(sd21, sd_root, name)["note"] == "made from another base"


def test_latents_follow_images_and_autoencoder(sd21, sd_root):
    def latents():
        return data.latents("some", images).clone()

    data_module = resolve("mtk_tasks_domainnet.sd21_data")
    data = data_module.Sd21Data(sd_root, sd21.grid)
    images = data.images("clipart-tool", "test")[:3]
    first = latents()
    assert torch.equal(latents(), first)
    blacken(sd_root)
    second = latents()
    assert not torch.equal(second, first)
    change(sd_root / VAE)
    data = data_module.Sd21Data(sd_root, sd21.grid)
    assert not torch.equal(latents(), second)


def test_hints_name_the_seed_and_the_options(cache, mini, regime, root, sd_root):
    track = make_clip(cache, mini, regime, seed=1, names="spaces", head_scope="joint")
    more = f"--root {root} --seed 1 --option names=spaces says what to do"
    with pytest.raises(UsageError, match=more):
        track.prepare(lambda *_: None)
    assert track.missing()[1].endswith("--root DIR --seed 1 --option names=spaces says")
    sd21 = sd21_track.DomainNetSd21(
        cache=cache, seed=2, options={"images": 4, "steps": 25}, grid=mini
    )
    with pytest.raises(UsageError, match="--seed 2 --option images=4 says"):
        sd21.prepare(lambda *_: None)
    assert "--seed 2 --option images=4" in sd21.missing()[-1]


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("open_clip_config.json", b"{", "open_clip_config.json: Expecting"),
        ("open_clip_model.safetensors", b"\0" * 20, "open_clip_model.safetensors: "),
    ],
)
def test_weights_that_cannot_be_read_are_not_there(track, root, file, content, note):
    (root / clip_data.FOLDER / file).write_bytes(content)
    found = part(track, root, "weights")
    assert not found["there"]
    assert f"not readable: {note}" in found["note"]
    assert found["todo"].startswith(f"put {file} of laion/")
    assert not part(track, root, "clipart-tool")["ready"]


def test_base_ability_needs_all_its_classes_with_images(cache, track, root):
    assert part(track, root, f"ability/{CIFAR}")["there"]
    real = clip_track.DomainNetClip(cache=cache, seed=0, options={})
    assert DOMAINNET.ability == 100
    found = part(real, root, f"ability/{CIFAR}")
    assert (found["there"], found["note"]) == (False, "2 classes, not 100")
    folder = root / clip_data.ABILITY
    for number in range(98):
        (folder / f"class{number:02}").mkdir()
        shutil.copy(folder / "cloud" / "0.png", folder / f"class{number:02}")
    assert part(real, root, f"ability/{CIFAR}")["there"]
    next((folder / "class07").iterdir()).unlink()
    found = part(real, root, f"ability/{CIFAR}")
    assert found["note"] == "100 classes, class07 has no images"
    assert not found["there"]


def test_a_folder_that_may_not_be_read_is_named(track, root, monkeypatch):
    import os

    true = os.scandir

    def scandir(path):
        if Path(path).name == "nail":
            raise PermissionError(13, "Permission denied", str(path))
        return true(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = part(track, root, "images/real")
    assert not found["there"]
    assert "Permission denied" in found["note"]
    assert found["todo"].startswith(f"give yourself the right to read {root / 'real'}")


def test_manifests_name_the_base(track, root, quiet):
    track.make(root, "clipart-tool", quiet)
    manifest = track.place(root, "clipart-tool") / "manifest.json"
    assert len(json.loads(manifest.read_text())["mtk"]["base"]) == 16
