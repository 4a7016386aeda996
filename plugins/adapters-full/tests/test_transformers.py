"""Models of transformers: opened, their roles, merged into a folder, and loaded again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import mtk
from mtk.errors import CheckpointError
from mtk.live import linear_layers
from mtk.views import Over, with_prefixes
from mtk_adapters_full import full

if TYPE_CHECKING:
    from pathlib import Path

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("quiet")
DECODER = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ENCODER = {
    k: DECODER[k]
    for k in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
}
IMAGE = ENCODER | {"image_size": 16, "patch_size": 8, "projection_dim": 8}
# Model -> class, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", DECODER),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {
        "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32,
        "bos_token_id": 1, "eos_token_id": 2,
    }),
    "bert": ("BertForMaskedLM", "BertConfig", ENCODER | {
        "vocab_size": 40, "max_position_embeddings": 32,
    }),
    "t5": ("T5ForConditionalGeneration", "T5Config", {
        "vocab_size": 40, "d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "d_kv": 8, "decoder_start_token_id": 0,
    }),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE),
}  # fmt: skip


def make(name: str) -> Any:
    if name == "clip":
        text = ENCODER | {
            "vocab_size": 40, "max_position_embeddings": 16, "projection_dim": 8,
            "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        config = transformers.CLIPConfig(
            text_config=text, vision_config=IMAGE, projection_dim=8
        )
        return transformers.CLIPModel(config)
    if name == "llava":
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**IMAGE),
            text_config=transformers.LlamaConfig(**DECODER),
            image_token_index=39,
        )
        return transformers.LlavaForConditionalGeneration(config)
    if name == "qwen2_vl":
        sections = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        }
        vision = {
            "depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2,
            "mlp_ratio": 2, "patch_size": 4,
        }  # fmt: skip
        config = transformers.Qwen2VLConfig(
            text_config=DECODER | {"rope_parameters": sections}, vision_config=vision
        )
        return transformers.Qwen2VLForConditionalGeneration(config)
    model, config, settings = MODELS[name]
    return getattr(transformers, model)(getattr(transformers, config)(**settings))


NAMES = [*MODELS, "clip", "llava", "qwen2_vl"]


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory, randomise) -> Any:
    """Two models of one architecture: their class and their folders."""
    root = tmp_path_factory.mktemp(request.param)
    for seed in (1, 2):
        model = randomise(make(request.param), seed)
        model.save_pretrained(root / str(seed))
    return type(model), root / "1", root / "2"


def stored(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def find(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    same = [n for n, t in tensors.items() if torch.equal(t, tensor)]
    assert len(same) == 1, same
    return same[0]


def expected_roles(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Roles by the modules of the loaded model; files' names found by the values."""
    roles: dict[str, str] = {}
    head = model.get_output_embeddings()
    for module in model.modules():
        kind = type(module).__name__
        for last, value in module.named_parameters(recurse=False):
            name = find(value, tensors)
            if isinstance(module, nn.Linear) or kind == "Conv1D":
                role = "bias" if last == "bias" else "linear"
                if kind == "Conv1D" and last == "weight":
                    role = "linear_t"
                if module is head and last == "weight":
                    role = "head"
            elif isinstance(module, nn.Embedding):
                role = "embedding"
            elif kind.endswith("Norm"):
                role = "norm"
            elif isinstance(module, nn.Conv2d | nn.Conv3d) and last == "weight":
                role = "conv"
            else:
                role = "other"
            roles.setdefault(name, role)
    return roles


def test_all_tensors_are_seen_with_the_roles_of_their_modules(pair) -> None:
    model, folder, _ = pair
    tensors = stored(folder)
    opened = full.open(folder)
    assert opened.names() == sorted(tensors)
    loaded = model.from_pretrained(folder)
    expected = expected_roles(loaded, tensors)
    assert full.roles(folder) == expected
    opened.settle()
    opened.settle()
    assert {name: opened.info(name).role for name in opened.names()} == expected
    for name in opened.names():
        info = opened.info(name)
        assert torch.equal(opened.read(name), tensors[name])
        if info.role == "bias":
            assert info.layer == name.removesuffix("bias") + "weight"
            assert opened.info(info.layer).role in ("linear", "linear_t", "head")
        else:
            assert info.layer == name


def test_the_built_model_computes_what_the_library_does(pair) -> None:
    model, folder, _ = pair
    theirs = model.from_pretrained(folder).eval()
    ours = full.build(folder)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    wanted = theirs.state_dict()
    assert list(ours.state_dict()) == list(wanted)
    assert all(torch.equal(t, wanted[n]) for n, t in ours.state_dict().items())
    assert len(linear_layers(ours)) == sum(
        isinstance(module, nn.Linear) for module in theirs.modules()
    )


def test_two_merged_into_a_folder_are_their_average(pair, average, tmp_path) -> None:
    model, *folders = pair
    target = tmp_path / "merged"
    mtk.merge(average, experts=folders, output=target)
    loaded, found = model.from_pretrained(target, output_loading_info=True)
    assert not any(found.values()), found
    one, two = (model.from_pretrained(folder).state_dict() for folder in folders)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    for file in folders[0].glob("*.json"):
        assert (target / file.name).read_bytes() == file.read_bytes()


def test_files_without_the_inner_prefix_get_their_roles(tmp_path: Path) -> None:
    """As gpt2 and bert are on the Hub: the names of the inner model alone."""
    from safetensors.torch import save_file

    model = make("gpt2")
    inner = {n: t.contiguous() for n, t in model.transformer.state_dict().items()}
    save_file(inner, tmp_path / "model.safetensors", {"format": "pt"})
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(tmp_path)
    roles = full.roles(tmp_path)
    assert roles["h.0.attn.c_attn.weight"] == "linear_t"
    assert roles["h.0.attn.c_attn.bias"] == "bias"
    assert roles["wte.weight"] == "embedding"
    assert set(roles) == set(inner)


def test_one_file_or_an_unknown_architecture_keeps_the_guessed_roles(tmp_path) -> None:
    make("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    file = tmp_path / "model.safetensors"
    for strange in (
        {"model_type": "martian"},
        {"architectures": ["AutoTokenizer"]},
        [],
    ):
        value = config | strange if strange else strange
        (tmp_path / "config.json").write_text(json.dumps(value))
        if strange:
            assert full.roles(tmp_path) == {}
        with pytest.raises(CheckpointError) as refused:
            full.build(tmp_path)
        assert len(str(refused.value).splitlines()) <= 3
    assert full.roles(file) == {}
    opened = full.open(file)
    before = {name: opened.info(name) for name in opened.names()}
    opened.settle()
    assert {name: opened.info(name) for name in opened.names()} == before
    with pytest.raises(CheckpointError, match="folder with its config"):
        full.build(file)


def test_no_code_is_run_and_no_other_model_opened(tmp_path: Path, monkeypatch) -> None:
    make("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.C"}
    config["attn_implementation"] = "stranger/kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    trap = f"open({str(tmp_path / 'trapped')!r}, 'w')\n"
    (tmp_path / "evil.py").write_text(trap)
    built = full.build(tmp_path)
    assert type(built).__name__ == "LlamaForCausalLM"
    assert not hasattr(built.config, "auto_map")
    assert full.roles(tmp_path)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "stranger/model", "peft_type": "LORA"})
    )
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        full.build(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_a_config_that_asks_for_other_weights_is_refused(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] = {"use_pretrained_backbone": True, "backbone": "resnet18"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="pretrained weights"):
        full.build(tmp_path)


def test_weights_that_do_not_fit_their_class_are_refused(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match="missing keys"):
        full.build(tmp_path)


def test_a_language_model_is_merged_into_a_vision_language_model(
    average, randomise, tmp_path
) -> None:
    randomise(make("llava"), 1).save_pretrained(tmp_path / "llava")
    randomise(make("llama"), 2).save_pretrained(tmp_path / "llama")
    whole, text = full.open(tmp_path / "llava"), full.open(tmp_path / "llama")
    part = Over(with_prefixes(text, {"": "language_model."}), whole)
    merged = mtk.merge(average, experts=[whole, part]).tensors
    one, two = stored(tmp_path / "llava"), stored(tmp_path / "llama")
    assert set(merged) == set(one)
    for name, tensor in merged.items():
        other = two.get(name.removeprefix("language_model."), one[name])
        torch.testing.assert_close(tensor, (one[name] + other) / 2)
    assert sum(name.startswith("language_model.") for name in merged) == len(two)


def test_shards_in_and_out_and_another_dtype(average, randomise, tmp_path) -> None:
    for seed in (1, 2):
        model = randomise(make("llama"), seed)
        model.save_pretrained(tmp_path / str(seed), max_shard_size="5KB")
    folders = [tmp_path / "1", tmp_path / "2"]
    assert len(list(folders[0].glob("*.safetensors"))) > 1
    target = tmp_path / "merged"
    mtk.merge(
        average, experts=folders, output=target, dtype="bfloat16", shard_size=4000
    )
    assert (target / "model.safetensors.index.json").is_file()
    load = transformers.LlamaForCausalLM.from_pretrained
    merged, found = load(target, dtype="auto", output_loading_info=True)
    assert not any(found.values()), found
    assert merged.dtype == torch.bfloat16
    one, two = (load(folder).state_dict() for folder in folders)
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, ((one[name] + two[name]) / 2).bfloat16()), name
    assert full.layout(target).family == "transformers"
    assert full.build(target).dtype == torch.float32


def test_experts_and_routers_keep_the_roles_of_their_names(tmp_path: Path) -> None:
    """The class fuses experts, and its router is a module of its own."""
    config = transformers.MixtralConfig(**DECODER, num_local_experts=2)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    opened = full.open(tmp_path)
    opened.settle()
    block = "model.layers.0.block_sparse_moe"
    for name in ("gate", "experts.0.w1", "experts.1.w2"):
        assert opened.info(f"{block}.{name}.weight").role == "linear"
    assert opened.info("lm_head.weight").role == "head"
    assert opened.info("model.layers.0.self_attn.q_proj.weight").role == "linear"
