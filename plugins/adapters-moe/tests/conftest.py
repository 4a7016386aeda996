"""Tiny mixtures of experts and dense models of the real classes, made when needed."""

from __future__ import annotations

import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

transformers.utils.logging.disable_progress_bar()
SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_LATENT = {
    "num_key_value_heads": 2, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
    "n_shared_experts": 1,
}  # fmt: skip
MIXTURES = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
         "shared_expert_intermediate_size": 20},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
         "head_dim": 8},
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": ("DeepseekV2", _LATENT),
    "deepseek_v3": ("DeepseekV3", _LATENT),
}  # fmt: skip
TRANSPOSED = {
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
}  # fmt: skip
OTHERS = {"granite": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2})}
ALL = {**MIXTURES, **TRANSPOSED, **OTHERS}


def randomise(model: torch.nn.Module, seed: int, base: torch.nn.Module | None) -> None:
    """Weights large enough that routing and every layer matter."""
    generator = torch.Generator().manual_seed(seed)
    theirs = None if base is None else dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if theirs is not None:
            parameter.data.copy_(theirs[name] + 0.05 * noise)
        else:
            parameter.data.copy_(0.2 * noise + (parameter.dim() == 1))


def new_model(kind: str, fields: dict, seed: int, base=None) -> torch.nn.Module:
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **fields})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    randomise(model, seed, base)
    return model


def save_tokenizer(folder: Path, *, words: int = 48) -> None:
    """Letters, a space, and a few words; id 0 begins a text."""
    letters = [chr(97 + i) for i in range(26)]
    names = ["<s>", "</s>", *letters, " "]
    names += [f"w{i}" for i in range(words - len(names))]
    vocab = {name: i for i, name in enumerate(names)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=[])),
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def mixture(tmp_path_factory) -> Callable:
    """(model, folder) of a kind; seeds above 0 are fine-tunes of seed 0."""
    known: dict = {}

    def make(kind: str, seed: int = 0):
        if (kind, seed) not in known:
            base = make(kind)[0] if seed else None
            model = new_model(*ALL[kind], seed, base)
            folder = tmp_path_factory.mktemp(f"{kind}-{seed}")
            model.save_pretrained(folder)
            save_tokenizer(folder)
            known[kind, seed] = model, folder
        return known[kind, seed]

    return make


@pytest.fixture(scope="session")
def dense(tmp_path_factory) -> Callable:
    """(model, folder) of a dense class, ``Llama`` ..."""
    known: dict = {}

    def make(kind: str, seed: int = 0, **fields):
        key = kind, seed, repr(fields)
        if key not in known:
            model = new_model(kind, fields, seed)
            folder = tmp_path_factory.mktemp(f"{kind}-{seed}")
            model.save_pretrained(folder)
            save_tokenizer(folder, words=model.config.vocab_size)
            known[key] = model, folder
        return known[key]

    return make


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 48, (3, 9), generator=torch.Generator().manual_seed(5))


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def run() -> Callable:
    return logits


@pytest.fixture(scope="session")
def load() -> Callable:
    """A folder, as its own class loads it; no name may be missing or left over."""

    def load(folder: Path):
        config = transformers.AutoConfig.from_pretrained(folder)
        model_class = getattr(transformers, config.architectures[0])
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        return model.eval()

    return load
