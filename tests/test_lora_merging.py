"""LoRA adapters as experts of a full base: any full-weight method, from the command line."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mtk_cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, RANK = 8, 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """base.safetensors in bfloat16, and two PEFT adapters on one of its two matrices."""
    torch.manual_seed(0)
    base = {f"m.{name}.weight": torch.randn(WIDTH, WIDTH).bfloat16() for name in "qk"}
    save_file(base, tmp_path / "base.safetensors")
    for index in range(2):
        adapter = tmp_path / f"adapter{index}"
        adapter.mkdir()
        config = {
            "peft_type": "LORA",
            "r": RANK,
            "lora_alpha": 4,
            "target_modules": ["q"],
        }
        config["base_model_name_or_path"] = "/nowhere/never/opened"
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        factors = {
            "base_model.model.m.q.lora_A.weight": torch.randn(RANK, WIDTH),
            "base_model.model.m.q.lora_B.weight": 0.01 * torch.randn(WIDTH, RANK),
        }
        save_file(factors, adapter / "adapter_model.safetensors")
    return tmp_path


def run(folder: Path, *arguments: str):
    paths = [
        "--base",
        "base.safetensors",
        "--expert",
        "adapter0",
        "--expert",
        "adapter1",
    ]
    given = [str(folder / a) if not a.startswith("-") else a for a in paths]
    out = ["--output", str(folder / "out.safetensors")]
    return CliRunner().invoke(cli, ["merge", *given, *out, *arguments])


def product(folder: Path, index: int) -> torch.Tensor:
    factors = load_file(folder / f"adapter{index}" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.m.q.lora_{x}.weight"] for x in "AB")
    return 4 / RANK * b @ a


def test_task_arithmetic_adds_the_products_and_rounds_once(folder: Path) -> None:
    outcome = run(folder, "--method", "task_arithmetic", "--param", "scale=0.5")
    assert outcome.exit_code == 0, outcome.output
    base = load_file(folder / "base.safetensors")
    merged = load_file(folder / "out.safetensors")
    want = base["m.q.weight"].float() + 0.5 * (product(folder, 0) + product(folder, 1))
    # One unit in the last place of bfloat16: the order of the sums is free.
    torch.testing.assert_close(
        merged["m.q.weight"].float(), want, rtol=2**-7, atol=1e-6
    )
    assert torch.equal(merged["m.k.weight"], base["m.k.weight"])
    assert merged["m.q.weight"].dtype == torch.bfloat16
    assert (merged["m.q.weight"] != base["m.q.weight"]).float().mean() > 0.5


@pytest.mark.parametrize("method", ["ties", "iso_c", "dare", "emr", "smile", "linear"])
def test_other_methods_take_adapters_too(folder: Path, method: str) -> None:
    outcome = run(folder, "--method", method)
    assert outcome.exit_code == 0, outcome.output
    assert (folder / "out.safetensors").is_file()


def test_without_a_base_an_adapter_is_refused(folder: Path) -> None:
    expert = str(folder / "adapter0")
    outcome = CliRunner().invoke(
        cli,
        [
            "merge",
            "--method",
            "average",
            "--expert",
            expert,
            "-o",
            str(folder / "o.safetensors"),
        ],
    )
    assert outcome.exit_code == 2
    assert "base" in outcome.stderr
    assert len(outcome.stderr.splitlines()) <= 3


def damaged(folder: Path, case: str) -> None:
    """Make adapter1 unfit for a merge."""
    weights = folder / "adapter1" / "adapter_model.safetensors"
    config = folder / "adapter1" / "adapter_config.json"
    tensors, settings = load_file(weights), json.loads(config.read_text())
    key = "base_model.model.m.q.lora_A.weight"
    if case == "NaN":
        tensors[key][0, 0] = float("nan")
    elif case == "half":
        del tensors[key]
    elif case == "rank 0":
        settings["r"] = 0
    elif case == "LOHA":
        settings["peft_type"] = "LOHA"
    elif case == "no weight":
        tensors = {k.replace("m.q", "m.z"): t for k, t in tensors.items()}
    elif case == "LoKr":
        config.unlink()
        tensors = {"lora_unet_m_q.lokr_w1": torch.ones(2, 2)}
    weights.unlink()
    save_file(tensors, weights)
    config.write_text(json.dumps(settings))


@pytest.mark.parametrize("case", ["NaN", "half", "rank 0", "LOHA", "no weight", "LoKr"])
def test_unfit_adapters_leave_nothing(folder: Path, case: str) -> None:
    damaged(folder, case)
    before = sorted(path.name for path in folder.iterdir())
    outcome = run(folder, "--method", "task_arithmetic")
    assert outcome.exit_code == 2, outcome.output
    assert {"half": "both A and B", "rank 0": "rank"}.get(case, case) in outcome.stderr
    assert len(outcome.stderr.splitlines()) <= 3
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_dry_run_takes_adapters_too(folder: Path) -> None:
    outcome = run(folder, "--method", "ties", "--dry-run")
    assert outcome.exit_code == 0, outcome.output
    assert not (folder / "out.safetensors").exists()
    damaged(folder, "no weight")
    assert run(folder, "--method", "ties", "--dry-run").exit_code == 2


@pytest.fixture
def quiet():
    """Libraries beneath us warn of things that are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def command(*arguments: object):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def llama(folder: Path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    if not folder.exists():
        model.save_pretrained(folder)
    return model


def trained(model, folder: Path, seed: int, **config) -> Path:
    """An adapter as peft saves it, with random factors."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    made = peft.get_peft_model(
        model, peft.LoraConfig(init_lora_weights=False, **config)
    )
    made.save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("quiet")
def test_a_llama_and_its_adapters_become_a_llama(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    adapters = [
        trained(llama(base), tmp_path / "0", 1, r=4, target_modules=["q_proj", "up_proj"]),
        trained(llama(base), tmp_path / "1", 2, r=2, use_rslora=True, target_modules=["q_proj"]),
    ]  # fmt: skip
    out, given = tmp_path / "out", [f"--expert={path}" for path in adapters]
    settings = ("--method", "task_arithmetic", "--param", "scale=0.5")
    command("merge", *settings, "--base", base, *given, "--output", out)
    dense, start = llama(base), llama(base).state_dict()
    parts = [
        peft.PeftModel.from_pretrained(llama(base), path).merge_and_unload().state_dict()
        for path in adapters
    ]  # fmt: skip
    dense.load_state_dict(
        {n: t + 0.5 * sum(p[n] - t for p in parts) for n, t in start.items()}
    )
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        want = dense(tokens).logits
        got = transformers.LlamaForCausalLM.from_pretrained(out).eval()(tokens).logits
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    # Merged into an adapter instead, with the same weights, the model is the same.
    pairs = [f"--adapter={path}" for path in adapters]
    new = tmp_path / "new"
    halves = ("--weight", 0.5, "--weight", 0.5)
    command("merge-lora", *pairs, *halves, "--base", base, "-o", new)
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(llama(base), new).eval()
        torch.testing.assert_close(loaded(tokens).logits, want, rtol=1e-3, atol=1e-4)
    # And extracted from the merged model, it is found again.
    found = tmp_path / "found"
    command("extract-lora", "--base", base, out, "--rank", 6, "-o", found)
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(llama(base), found).eval()
        torch.testing.assert_close(loaded(tokens).logits, want, rtol=1e-3, atol=1e-3)


def pipeline():
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(4, 8), norm_num_groups=2,
        cross_attention_dim=8, attention_head_dim=2, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    )  # fmt: skip
    config = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, projection_dim=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=None, tokenizer=None, tokenizer_2=None, unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        text_encoder=transformers.CLIPTextModel(config),
        text_encoder_2=transformers.CLIPTextModelWithProjection(config),
    )  # fmt: skip


# Kohya's name -> component and weight. Two names are those of the UNet's first release.
KOHYA = {
    "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q":
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"),
    "lora_unet_middle_block_1_proj_in": ("unet", "mid_block.attentions.0.proj_in.weight"),
    "lora_te1_text_model_encoder_layers_0_self_attn_v_proj":
        ("text_encoder", "encoder.layers.0.self_attn.v_proj.weight"),
    "lora_te2_text_model_encoder_layers_0_self_attn_q_proj":
        ("text_encoder_2", "text_model.encoder.layers.0.self_attn.q_proj.weight"),
}  # fmt: skip


def load_pipeline(folder: Path):
    import diffusers

    absent = dict.fromkeys(("vae", "tokenizer", "tokenizer_2"))
    return diffusers.StableDiffusionXLPipeline.from_pretrained(folder, **absent)


def parts_of(pipe) -> dict[str, dict[str, torch.Tensor]]:
    return {
        part: getattr(pipe, part).state_dict()
        for part in ("unet", "text_encoder", "text_encoder_2")
    }


@pytest.mark.usefixtures("quiet")
def test_a_pipeline_and_a_kohya_file_become_a_pipeline(tmp_path: Path) -> None:
    pipe, tensors = pipeline(), {}
    pipe.save_pretrained(tmp_path / "pipe")
    want = {p: {n: t.clone() for n, t in s.items()} for p, s in parts_of(pipe).items()}
    for key, (part, name) in KOHYA.items():
        d_out, d_in = want[part][name].shape
        a, b = torch.randn(2, d_in), torch.randn(d_out, 2)
        tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
        want[part][name] += 0.8 * (1 / 2) * b @ a
    file = tmp_path / "kohya.safetensors"
    save_file(tensors, file)
    given = ("--base", tmp_path / "pipe", "--method", "task_arithmetic")
    out = tmp_path / "out"
    command("merge", *given, "--expert", file, "--param", "scale=0.8", "--output", out)
    loaded = load_pipeline(out)
    for part, state in parts_of(loaded).items():
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, want[part][name], rtol=1e-4, atol=1e-5)
    new = tmp_path / "new"
    command("merge-lora", "--adapter", file, "--weight", 0.8, "--base", tmp_path / "pipe", "-o", new)  # fmt: skip
    again = load_pipeline(tmp_path / "pipe")
    again.load_lora_weights(new)
    again.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    again.unload_lora_weights()
    for part, state in parts_of(again).items():
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, want[part][name], rtol=1e-4, atol=1e-5)
