"""Adapters of whole diffusion pipelines, against diffusers itself."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtk.checkpoint import StateDict
from mtk.errors import CheckpointError
from mtk_adapters_lora import lora
from mtk_adapters_lora.combine import combine
from mtk_adapters_lora.extract import extract
from mtk_adapters_lora.sgm import sgm_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

PARTS = ("unet", "text_encoder", "text_encoder_2", "transformer")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Libraries beneath us warn of things that are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sdxl() -> Any:
    """SDXL in small: its kinds of blocks, two residual layers each, two text encoders."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(4, 8, 8),
        norm_num_groups=2, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32, use_linear_projection=True,
    )  # fmt: skip
    config = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=None, tokenizer=None, tokenizer_2=None, unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        text_encoder=transformers.CLIPTextModel(config),
        text_encoder_2=transformers.CLIPTextModelWithProjection(config),
    )  # fmt: skip


def sd3() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=8,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=4,
    )  # fmt: skip
    empty = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2",
         "text_encoder_3", "tokenizer_3")
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **empty,
    )


def flux() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    empty = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    )
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **empty,
    )


def state(pipe: Any) -> dict[str, torch.Tensor]:
    """All tensors of a pipeline, named as mtk names those of a pipeline folder."""
    return {
        f"{part}/{name}": tensor.clone()
        for part in PARTS
        if getattr(pipe, part, None) is not None
        for name, tensor in getattr(pipe, part).state_dict().items()
    }


def fused(make: Any, file: Path) -> dict[str, torch.Tensor]:
    """What diffusers makes of the base with this adapter."""
    pipe = make()
    name = file.name if file.is_file() else None
    pipe.load_lora_weights(file.parent if name else file, weight_name=name)
    parts = [part for part in PARTS if getattr(pipe, part, None) is not None]
    for part in parts:
        for layer in getattr(pipe, part).modules():
            if isinstance(layer, peft.tuners.lora.LoraLayer):
                layer.merge()
    tensors = state(pipe)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in tensors.items()
        if ".lora_" not in name
    }


def pair(shape: tuple[int, ...], rank: int, seed: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    ones = [1] * (len(shape) - 2)
    a = torch.randn(rank, *shape[1:], generator=g) * 0.3
    return a, torch.randn(shape[0], rank, *ones, generator=g) * 0.3


# The first names of some modules of this UNet, written down by hand from the layout of
# SDXL: 9 input blocks (0: conv_in; 3 and 6: downsamplers), 3 middle, 9 output blocks.
SGM = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.1.conv1": "input_blocks.2.0.in_layers.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks.4.0.emb_layers.1",
    "down_blocks.1.attentions.0.proj_in": "input_blocks.4.1.proj_in",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k":
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k",
    "mid_block.resnets.0.conv2": "middle_block.0.out_layers.3",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj":
        "middle_block.1.transformer_blocks.0.ff.net.0.proj",
    "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_out.0":
        "output_blocks.2.1.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.attentions.0.proj_out": "output_blocks.3.1.proj_out",
    "up_blocks.2.resnets.2.conv2": "output_blocks.8.0.out_layers.3",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "conv_out": "out.2",
}  # fmt: skip


def test_the_first_names_of_a_unet() -> None:
    stems = [n.removesuffix(".weight") for n in sdxl().unet.state_dict() if n.endswith("weight")]  # fmt: skip
    names = sgm_names(stems)
    assert {stem: names[stem] for stem in SGM} == SGM
    assert set(names) == set(stems)
    assert len(set(names.values())) == len(names)
    assert sgm_names(["model.layers.0.self_attn.q_proj", "conv_in"]) == {}


def kohya_file(
    file: Path, *, sgm: bool, seed: int, rank: int = 2, alphas: tuple = (3.0,)
) -> Path:
    """A file as Kohya's trainer writes it for SDXL, with an alpha for each module.

    Compare with diffusers at a single alpha only: 0.42 loses the others on the way.
    """
    source, tensors = state(sdxl()), {}
    unet = [n[5:-7] for n in source if n.startswith("unet/") and n.endswith(".weight")]
    old = sgm_names(unet) if sgm else {}
    chosen = (
        r"attn\d\.to_(q|k|v|out\.0)$|ff\.net\.\d(\.proj)?$|proj_(in|out)$|fc\d$|_proj$"
    )
    for i, (name, tensor) in enumerate(source.items()):
        part, _, stem = name.removesuffix(".weight").partition("/")
        if not name.endswith(".weight") or not re.search(chosen, stem) or "emb" in stem:
            continue
        if part == "unet":
            key = "lora_unet_" + old.get(stem, stem).replace(".", "_")
        else:  # the file has CLIP's old names, whatever the library uses today
            inner = "text_model." + stem.removeprefix("text_model.")
            number = "2" if part.endswith("2") else "1"
            if stem == "text_projection":
                continue
            key = f"lora_te{number}_" + inner.replace(".", "_")
        a, b = pair(tuple(tensor.shape), rank, 1000 * seed + i)
        tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
        tensors[f"{key}.alpha"] = torch.tensor(alphas[i % len(alphas)])
    save_file(tensors, file)
    return file


def check(opened: Any, want: dict[str, torch.Tensor]) -> None:
    for name in opened.names():
        torch.testing.assert_close(opened.read(name), want[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sgm", [True, False])
def test_a_kohya_file_of_sdxl_means_what_diffusers_takes_it_for(
    tmp_path: Path, sgm: bool
) -> None:
    file = kohya_file(tmp_path / "k.safetensors", sgm=sgm, seed=1)
    assert any("input_blocks" in key for key in load_file(file)) == sgm
    base = StateDict(state(sdxl()), "pipeline")
    opened = lora.open(file, base=base)
    changed = opened.changed()
    assert {name.partition("/")[0] for name in changed} == set(PARTS[:3])
    assert any("mid_block" in name for name in changed)
    assert any("up_blocks" in name for name in changed)
    check(opened, fused(sdxl, file))


def test_a_combination_for_a_pipeline_is_loaded_by_it(tmp_path: Path) -> None:
    base = StateDict(state(sdxl()), "pipeline")
    files = [
        kohya_file(
            tmp_path / f"{i}.safetensors",
            sgm=bool(i),
            seed=i,
            rank=2 + i,
            alphas=(1.0, 2.0),
        )
        for i in range(2)
    ]
    weights = [0.6, -0.3]
    opened = [lora.open(file, base=base) for file in files]
    want = {
        name: base.read(name)
        + sum(w * (o.read(name) - base.read(name)) for w, o in zip(weights, opened, strict=True))
        for name in base.names()
    }  # fmt: skip
    new = combine(files, weights, base=base)
    got = fused(sdxl, new.save(tmp_path / "new"))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)
    check(lora.open(tmp_path / "new", base=base), want)
    again = combine([tmp_path / "new"]).save(tmp_path / "again")
    check(lora.open(again, base=base), want)


def test_unequal_ranks_keep_their_scale_in_a_pipeline(tmp_path: Path) -> None:
    base = StateDict(state(sdxl()), "pipeline")
    files = [kohya_file(tmp_path / "0.safetensors", sgm=True, seed=0)]
    tensors = {k: v for k, v in load_file(files[0]).items() if "attn1_to_q" in k or "q_proj" in k}  # fmt: skip
    files.append(tmp_path / "1.safetensors")
    save_file(tensors, files[1])
    new = combine(files, base=base)
    assert {update.rank for update in new.updates.values()} == {2, 4}
    got = fused(sdxl, new.save(tmp_path / "new"))
    for name, update in new.updates.items():
        want = base.read(f"{name}.weight") + update.b @ update.a
        torch.testing.assert_close(got[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)


def test_one_component_alone(tmp_path: Path) -> None:
    file = kohya_file(tmp_path / "k.safetensors", sgm=True, seed=1)
    pipeline = StateDict(state(sdxl()), "pipeline")
    unet = StateDict(sdxl().unet.state_dict(), "unet")
    want = fused(sdxl, file)
    for component in ("unet", "lora_unet"):
        alone = lora.open(file, base=unet, component=component)
        check(alone, {n[5:]: t for n, t in want.items() if n.startswith("unet/")})
        part = lora.open(file, base=pipeline, component=component)
        assert {name.partition("/")[0] for name in part.changed()} == {"unet"}
    with pytest.raises(CheckpointError, match="component"):
        lora.open(file, base=unet)
    with pytest.raises(CheckpointError, match="lora_te1, lora_te2, lora_unet"):
        lora.open(file, base=unet, component="vae")
    half = StateDict(
        {n: t for n, t in state(sdxl()).items() if n[:4] == "unet"}, "half"
    )
    with pytest.raises(CheckpointError, match="lora_te1"):
        lora.open(file, base=half)
    # A result for the UNet alone still says that it is one for a pipeline's UNet.
    new = combine([file], base=unet, component="unet")
    got = fused(sdxl, new.save(tmp_path / "new"))
    for name, tensor in want.items():
        if name.startswith("unet/"):
            torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_peft_adapter_of_one_model_of_a_pipeline(tmp_path: Path) -> None:
    base = StateDict(state(sdxl()), "pipeline")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(sdxl().text_encoder, config)
    model.save_pretrained(tmp_path / "x")
    with pytest.raises(CheckpointError, match="several"):
        lora.open(tmp_path / "x", base=base)
    opened = lora.open(tmp_path / "x", base=base, component="text_encoder")
    merged = model.merge_and_unload().state_dict()
    assert opened.changed()
    for name in opened.changed():
        part, _, inner = name.partition("/")
        assert part == "text_encoder"
        torch.testing.assert_close(opened.read(name), merged[inner])


@pytest.mark.parametrize("make", [sd3, flux])
def test_a_transformer_in_the_names_of_diffusers(make: Any, tmp_path: Path) -> None:
    pipe = make()
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=["to_q", "add_k_proj", "to_out.0"],
        init_lora_weights=False,
    )  # fmt: skip
    pipe.transformer.add_adapter(config)
    layers = peft.utils.get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(
        tmp_path / "x",
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=config.to_dict()
        | {"target_modules": list(config.target_modules)},
    )
    base = StateDict(state(make()), "pipeline")
    want = fused(make, tmp_path / "x" / "pytorch_lora_weights.safetensors")
    opened = lora.open(tmp_path / "x", base=base)
    assert len(opened.changed()) > 2
    check(opened, want)
    alone = lora.open(
        tmp_path / "x", base=StateDict(make().transformer.state_dict(), "t")
    )
    check(alone, {name.partition("/")[2]: tensor for name, tensor in want.items()})
    got = fused(make, combine([tmp_path / "x"] * 2).save(tmp_path / "new"))
    for name in opened.changed():
        twice = 2 * opened.read(name) - base.read(name)
        torch.testing.assert_close(got[name], twice, rtol=1e-4, atol=1e-5)


def test_an_adapter_extracted_from_a_pipeline_is_loaded_by_it(tmp_path: Path) -> None:
    tuned = fused(sdxl, kohya_file(tmp_path / "k.safetensors", sgm=True, seed=1))
    new = extract(state(sdxl()), tuned, 2)
    assert new.relative_error < 1e-3
    assert not new.left_out
    got = fused(sdxl, new.save(tmp_path / "new"))
    for name, tensor in tuned.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-4)


def test_kohya_names_of_one_text_encoder(tmp_path: Path) -> None:
    a, b = pair((6, 8), 2, 1)
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    file = tmp_path / "k.safetensors"
    save_file({f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}, file)
    for name in ("encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"):
        zeros = {f"{part}/{name}.weight": torch.zeros(6, 8) for part in PARTS[1:3]}
        opened = lora.open(file, base=StateDict(zeros, "base"))
        assert opened.changed() == [f"text_encoder/{name}.weight"]
        torch.testing.assert_close(opened.read(opened.changed()[0]), b @ a)
