"""Round trips with peft and diffusers themselves, on models made here."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mtk.checkpoint import StateDict
from mtk_adapters_lora import lora
from mtk_adapters_lora.combine import combine
from mtk_adapters_lora.extract import extract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Libraries beneath us warn of things that are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32
    )
    return transformers.GPT2LMHeadModel(config).eval()


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def trained(make: Any, folder: Path, seed: int = 1, **config: Any) -> Path:
    """An adapter as peft saves it, with random factors."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]}
    model = peft.get_peft_model(make(), peft.LoraConfig(**(settings | config)))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=g) * 0.1)
            elif parameter.requires_grad:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=g))
    model.save_pretrained(folder)
    return folder


def merged_by_peft(make: Any, *folders: Path) -> dict:
    model = make()
    for folder in folders:
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.state_dict()


def summed_by_peft(make: Any, *folders: Path) -> dict:
    """Base plus every update. (One after the other, peft would lose embeddings: each
    adapter brings the weight beneath its own.)"""
    base = make().state_dict()
    results = [merged_by_peft(make, folder) for folder in folders]
    return {
        name: value + sum(r[name] - value for r in results)
        for name, value in base.items()
    }


def base_of(make: Any) -> StateDict:
    return StateDict(make().state_dict(), "base")


CONFIGS: list[tuple[Any, dict]] = [
    (llama, {}),
    (llama, {"use_rslora": True}),
    (llama, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn.q_proj": 9}}),
    (llama, {"use_dora": True}),
    (llama, {"use_dora": True, "use_rslora": True, "rank_pattern": {"up_proj": 3}}),
    (llama, {"use_rslora": True, "rank_pattern": {r"layers\.0.*up_proj": 1, "up_proj": 3},
             "alpha_pattern": {"q_proj": 2, r"1\..*up_proj": 5}}),
    (llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    (llama, {"target_modules": ["embed_tokens"], "use_rslora": True, "lora_alpha": 3}),
    (bert, {"target_modules": ["query", "word_embeddings"], "modules_to_save": ["classifier"],
            "bias": "all", "task_type": "SEQ_CLS"}),
    (bert, {"target_modules": ["query", "dense"], "lora_bias": True, "use_rslora": True}),
    (llama, {"modules_to_save": ["lm_head"]}),
    (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"}),
    (gpt2, {"target_modules": ["c_fc"], "fan_in_fan_out": True, "bias": "all"}),
    (gpt2, {"target_modules": ["c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    (gpt2, {"target_modules": ["c_fc"], "fan_in_fan_out": True, "lora_bias": True}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "config"), CONFIGS)
def test_products_are_what_peft_merges(make: Any, config: dict, tmp_path: Path) -> None:
    folder = trained(make, tmp_path / "x", **config)
    source = base_of(make)
    opened = lora.open(folder, base=source)
    want = merged_by_peft(make, folder)
    assert opened.changed()
    for name in opened.names():
        torch.testing.assert_close(opened.read(name), want[name], rtol=1e-4, atol=1e-5)
        if name not in opened.changed():
            assert opened.read(name).data_ptr() == source.read(name).data_ptr()


PLAIN = [c for c in CONFIGS if not {"use_dora", "bias", "lora_bias", "modules_to_save"} & set(c[1])]  # fmt: skip


@pytest.mark.parametrize(("make", "config"), PLAIN)
def test_peft_loads_a_combination(make: Any, config: dict, tmp_path: Path) -> None:
    paths = [
        trained(make, tmp_path / "1", 1, **config),
        trained(make, tmp_path / "2", 2, **(config | {"r": 2, "rank_pattern": {}})),
    ]
    for kind, rank in (("cat", None), ("svd", 6)):
        new = combine(paths, combination=kind, rank=rank, base=base_of(make))
        folder = new.save(tmp_path / kind)
        got = merged_by_peft(make, folder)
        want = summed_by_peft(make, *paths)
        assert new.relative_error < 1e-5
        for name, tensor in want.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)


def test_peft_loads_unequal_ranks_without_missing_keys(tmp_path: Path) -> None:
    paths = [
        trained(llama, tmp_path / "1"),
        trained(llama, tmp_path / "2", 2, target_modules=["q_proj"]),
    ]
    folder = combine(paths).save(tmp_path / "new")
    want, got = merged_by_peft(llama, *paths), merged_by_peft(llama, folder)
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_logits_of_a_loaded_combination_are_those_of_the_dense_sum(
    tmp_path: Path,
) -> None:
    more = {"r": 3, "use_rslora": True, "target_modules": ["q_proj", "lm_head"]}
    paths = [trained(llama, tmp_path / "1"), trained(llama, tmp_path / "2", 2, **more)]
    base = llama().state_dict()
    one, two = (merged_by_peft(llama, path) for path in paths)
    dense = llama()
    dense.load_state_dict(
        {n: t + 0.7 * (one[n] - t) - 0.4 * (two[n] - t) for n, t in base.items()}
    )
    new = combine(paths, [0.7, -0.4], base=base_of(llama))
    folder = new.save(tmp_path / "new")
    loaded = peft.PeftModel.from_pretrained(llama(), folder).eval()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        want, got = dense(tokens).logits, loaded(tokens).logits
        before = llama()(tokens).logits
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert (want - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["linear", "ties", "magnitude_prune_svd", "ties_svd"])
def test_combinations_equal_those_of_peft(kind: str, tmp_path: Path) -> None:
    paths = [trained(llama, tmp_path / str(i), i) for i in (1, 2, 3)]
    model = peft.PeftModel.from_pretrained(llama(), paths[0], adapter_name="a0")
    for i, path in enumerate(paths[1:], 1):
        model.load_adapter(path, adapter_name=f"a{i}")
    weights = [0.7, 0.4, 0.9]
    density = {} if kind == "linear" else {"density": 0.5}
    model.add_weighted_adapter(
        ["a0", "a1", "a2"], weights, "new", combination_type=kind, **density
    )
    model.set_adapter("new")
    want = model.merge_and_unload().state_dict()
    folder = combine(paths, weights, kind, **density).save(tmp_path / "new")
    for name, tensor in merged_by_peft(llama, folder).items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_peft_loads_an_extracted_adapter(make: Any, tmp_path: Path) -> None:
    targets = {} if make is llama else {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}  # fmt: skip
    tuned = merged_by_peft(make, trained(make, tmp_path / "x", **targets))
    new = extract(make().state_dict(), tuned, 4)
    assert new.fan_in_fan_out == (make is gpt2)
    assert new.relative_error < 1e-4
    got = merged_by_peft(make, new.save(tmp_path / "new"))
    for name, tensor in tuned.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-4)


def unet() -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def diffusers_file(folder: Path, alpha: int, seed: int) -> Path:
    model = unet()
    model.add_adapter(
        peft.LoraConfig(
            r=2, lora_alpha=alpha, target_modules=["to_q", "to_out.0", "conv1"]
        )
    )
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    folder.mkdir()
    model.save_lora_adapter(folder)
    return folder


def fused(folder: Path) -> dict:
    model = unet()
    model.load_lora_adapter(
        folder, weight_name="pytorch_lora_weights.safetensors", prefix=None
    )
    model.fuse_lora()
    model.unload_lora()
    return model.state_dict()


def test_a_diffusers_unet_and_a_combination_of_its_adapters(tmp_path: Path) -> None:
    source = base_of(unet)
    paths = [
        diffusers_file(tmp_path / str(i), alpha, i) for i, alpha in ((1, 8), (2, 3))
    ]
    for path in paths:
        want, opened = fused(path), lora.open(path, base=source)
        assert any("conv" in name for name in opened.changed())
        for name in source.names():
            torch.testing.assert_close(
                opened.read(name), want[name], rtol=1e-4, atol=1e-5
            )
    folder = combine(paths, [1.0, 0.5]).save(tmp_path / "new")
    got = fused(folder)
    one, two = (lora.open(path, base=source) for path in paths)
    for name in source.names():
        before = source.read(name)
        want = before + (one.read(name) - before) + 0.5 * (two.read(name) - before)
        torch.testing.assert_close(got[name], want, rtol=1e-4, atol=1e-5)


def test_kohya_files_mean_what_diffusers_takes_them_for(tmp_path: Path) -> None:
    loaders = pytest.importorskip("diffusers.loaders")
    from safetensors.torch import save_file

    source, model, tensors = base_of(unet), unet(), {}
    g = torch.Generator().manual_seed(1)
    for name in source.names():
        if name.endswith(("to_q.weight", "to_out.0.weight")):
            out, inp = source.info(name).shape
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, inp, generator=g)
            tensors[f"{key}.lora_up.weight"] = torch.randn(out, 2, generator=g)
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    file = tmp_path / "kohya.safetensors"
    save_file(tensors, file)
    mixin = loaders.StableDiffusionLoraLoaderMixin
    state, alphas = mixin.lora_state_dict(str(file))[:2]
    mixin.load_lora_into_unet(state, network_alphas=alphas, unet=model)
    model.fuse_lora()
    model.unload_lora()
    opened = lora.open(file, base=source)
    for name, want in model.state_dict().items():
        torch.testing.assert_close(opened.read(name), want, rtol=1e-4, atol=1e-5)
