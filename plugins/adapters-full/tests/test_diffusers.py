"""Components and pipelines of diffusers, merged into folders that diffusers loads."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mtk
from mtk.errors import CheckpointError
from mtk_adapters_full import full

if TYPE_CHECKING:
    from pathlib import Path

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("quiet")

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
    "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 16,
}  # fmt: skip
DIT = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8,
    "num_layers": 2, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10,
    "norm_num_groups": 4,
}  # fmt: skip
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2,
    "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16,
    "caption_projection_dim": 16, "pooled_projection_dim": 16, "out_channels": 4,
    "pos_embed_max_size": 8,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("UNet2DConditionModel", UNET),
    "dit": ("DiTTransformer2DModel", DIT),
    "sd3": ("SD3Transformer2DModel", SD3),
}


def make(name: str) -> Any:
    model, settings = MODELS[name]
    return getattr(diffusers, model)(**settings)


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request, tmp_path_factory, randomise) -> Any:
    root = tmp_path_factory.mktemp(request.param)
    for seed in (1, 2):
        model = randomise(make(request.param), seed)
        model.save_pretrained(root / str(seed))
    return type(model), root / "1", root / "2"


def average_of(one: Any, two: Any) -> dict[str, torch.Tensor]:
    first, second = one.state_dict(), two.state_dict()
    return {name: (first[name] + second[name]) / 2 for name in first}


def check_average(loaded: Any, one: Any, two: Any) -> None:
    wanted, found = average_of(one, two), loaded.state_dict()
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)


def test_the_roles_are_those_of_the_modules(pair) -> None:
    model, folder, _ = pair
    loaded = model.from_pretrained(folder)
    roles = full.roles(folder)
    assert full.open(folder).names() == sorted(loaded.state_dict())
    assert set(roles) == set(dict(loaded.named_parameters()))
    for kind, role in ((nn.Linear, "linear"), (nn.Conv2d, "conv")):
        modules = {f"{n}.weight" for n, m in loaded.named_modules() if type(m) is kind}
        assert {name for name, found in roles.items() if found == role} == modules
    assert {roles[n] for n in roles if n.endswith("proj_out.bias")} <= {"bias", "other"}


def test_a_component_is_built_as_the_library_loads_it(pair) -> None:
    model, folder, _ = pair
    wanted = model.from_pretrained(folder).state_dict()
    built = full.build(folder)
    assert not built.training
    found = built.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_two_components_are_merged_into_their_average(pair, average, tmp_path) -> None:
    model, *folders = pair
    target = tmp_path / "merged"
    mtk.merge(average, experts=folders, output=target)
    loaded, found = model.from_pretrained(target, output_loading_info=True)
    assert not any(found.values()), found
    check_average(loaded, *(model.from_pretrained(folder) for folder in folders))
    assert full.layout(target).family == "diffusers"


def save_pipeline(folder: Path, seed: int, randomise: Any) -> None:
    text = transformers.CLIPTextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, sample_size=8,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    words = folder.with_name("words")
    words.mkdir(exist_ok=True)
    vocab = {t: i for i, t in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>"])}
    (words / "vocab.json").write_text(json.dumps(vocab))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(words)
    pipeline = diffusers.StableDiffusionPipeline(
        unet=randomise(make("unet"), seed),
        vae=randomise(vae, seed + 10),
        text_encoder=randomise(transformers.CLIPTextModel(text), seed + 20),
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory, randomise) -> list[Path]:
    root = tmp_path_factory.mktemp("pipelines")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in (1, 2):
            save_pipeline(root / str(seed), seed, randomise)
    return [root / "1", root / "2"]


def load(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)


def test_a_pipeline_opens_with_all_its_components(pipelines) -> None:
    opened = full.open(pipelines[0])
    names = opened.names()
    assert {name.partition("/")[0] for name in names} == {"unet", "vae", "text_encoder"}
    loaded = load(pipelines[0]).unet.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(opened.read(f"unet/{name}"), tensor)
        flat = tensor.flatten()
        assert torch.equal(opened.part(f"unet/{name}", 1, 3), flat[1:3])
    inner = "unet/mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    assert opened.info(f"{inner}.bias").layer == f"{inner}.weight"
    roles = full.roles(pipelines[0])
    assert {name.partition("/")[0] for name in roles} == {"unet", "vae", "text_encoder"}
    assert roles["unet/conv_in.weight"] == "conv"
    opened.settle()
    found = [
        n for n in names if n.endswith("text_model.embeddings.token_embedding.weight")
    ]
    found = found or [n for n in names if n.endswith("token_embedding.weight")]
    assert opened.info(found[0]).role == "embedding"
    # Its name says embedding; its module says that it is none.
    assert opened.info("unet/time_embedding.linear_1.weight").role == "linear"
    bias = opened.info("unet/time_embedding.linear_1.bias")
    assert bias.layer == "unet/time_embedding.linear_1.weight"


def test_its_layout_names_every_part_that_it_loads(pipelines) -> None:
    layout = full.layout(pipelines[0])
    assert layout.family == "diffusers"
    assert dict(layout.weights) == {
        "unet": "unet/diffusion_pytorch_model.safetensors",
        "vae": "vae/diffusion_pytorch_model.safetensors",
        "text_encoder": "text_encoder/model.safetensors",
    }
    assert {
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    } <= set(layout.files)
    on_disk = {
        p.relative_to(pipelines[0]).as_posix()
        for p in pipelines[0].rglob("*")
        if p.is_file()
    }
    assert set(layout.files) == on_disk - set(layout.weights.values())


def test_a_merged_pipeline_loads_whole(pipelines, average, tmp_path) -> None:
    target = tmp_path / "merged"
    mtk.merge(average, experts=pipelines, output=target)
    merged, one, two = load(target), load(pipelines[0]), load(pipelines[1])
    for part in ("unet", "vae", "text_encoder"):
        check_average(*(getattr(each, part) for each in (merged, one, two)))
    assert merged.tokenizer.get_vocab() == one.tokenizer.get_vocab()


def test_a_part_is_merged_and_the_rest_is_the_first_one_s(
    pipelines, average, tmp_path
) -> None:
    target = tmp_path / "merged"
    mtk.merge(average, experts=pipelines, only=["unet/*"], output=target)
    merged, one, two = load(target), load(pipelines[0]), load(pipelines[1])
    check_average(merged.unet, one.unet, two.unet)
    check_average(merged.vae, one.vae, one.vae)


def test_a_pipeline_is_not_one_model_to_run(pipelines) -> None:
    with pytest.raises(CheckpointError, match="subfolders"):
        full.build(pipelines[0])
    assert type(full.build(pipelines[0] / "unet")).__name__ == "UNet2DConditionModel"


def test_pickled_or_own_code_components_are_refused(pipelines, tmp_path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(pipelines[0], folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    assert not any(name.startswith("vae/") for name in full.open(folder).names())
    with pytest.raises(CheckpointError, match="vae has pickled weights only"):
        full.layout(folder)
    index = json.loads((folder / "model_index.json").read_text())
    for change in (
        {"_class_name": ["pipeline", "Mine"]},
        {"unet": ["my_unet", "Mine"]},
    ):
        (folder / "unet" / "my_unet.py").write_text("")
        (folder / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(CheckpointError, match="code of its own"):
            full.layout(folder)


def test_a_pipeline_whose_index_points_elsewhere_stays_inside(tmp_path) -> None:
    folder, outside = tmp_path / "pipeline", tmp_path / "outside"
    for place in (folder / "unet", outside):
        place.mkdir(parents=True)
        save_file({"w": torch.ones(2)}, place / "diffusion_pytorch_model.safetensors")
        (place / "config.json").write_text("{}")
    (folder / "link").symlink_to(outside)
    (folder / "unet" / "inner").mkdir()
    save_file({"v": torch.ones(2)}, folder / "unet" / "inner" / "model.safetensors")
    names = ["unet", "link", "../outside", str(outside), "..", ".", "unet/inner"]
    index = {name: ["x", "Y"] for name in names}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert full.open(folder).names() == ["unet/w"]
    assert set(full.layout(folder).files) == {"model_index.json", "unet/config.json"}


def test_the_plain_weights_are_taken_where_variants_lie_beside(tmp_path) -> None:
    plain, half = {"w": torch.ones(2)}, {"w": torch.ones(2).half()}
    single = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(plain, single)
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert full.open(tmp_path).info("w").dtype == "float32"
    assert "fp16.safetensors was left alone" in full.notes(tmp_path)[0]
    single.unlink()
    assert full.open(tmp_path).info("w").dtype == "float16"
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert dict(full.layout(tmp_path).weights) == {"": single.name}
    save_file(plain, tmp_path / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(CheckpointError, match="2 variants"):
        full.open(tmp_path)


def test_the_names_of_old_attention_layers_are_understood(tmp_path, randomise) -> None:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, sample_size=8,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    randomise(vae, 1).save_pretrained(tmp_path)
    state = vae.state_dict()
    old = {}
    for name, tensor in state.items():
        new = name
        for today, once in (
            ("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."),
            ("to_out.0.", "proj_attn."),
        ):  # fmt: skip
            new = new.replace(today, once)
        old[new] = tensor
    assert set(old) != set(state)
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    found = full.build(tmp_path).state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)
    attention = "encoder.mid_block.attentions.0"
    roles = full.roles(tmp_path)
    assert roles[f"{attention}.query.weight"] == "linear"
    assert roles[f"{attention}.query.bias"] == "bias"
    opened = full.open(tmp_path)
    opened.settle()
    bias = opened.info(f"{attention}.proj_attn.bias")
    assert bias.layer == f"{attention}.proj_attn.weight"


def test_sharded_components_are_read_and_written(average, randomise, tmp_path) -> None:
    folders = [tmp_path / str(seed) for seed in (1, 2)]
    for seed, folder in enumerate(folders):
        randomise(make("dit"), seed).save_pretrained(folder, max_shard_size="20KB")
    index = "diffusion_pytorch_model.safetensors.index.json"
    assert (folders[0] / index).is_file()
    target = tmp_path / "merged"
    mtk.merge(average, experts=folders, output=target, shard_size=20_000)
    assert (target / index).is_file()
    load = diffusers.DiTTransformer2DModel.from_pretrained
    check_average(load(target), *(load(folder) for folder in folders))
