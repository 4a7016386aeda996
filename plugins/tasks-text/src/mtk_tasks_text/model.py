"""A T5 small enough to train on one CPU thread, built and stored as transformers does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mtk.loading import resolve
from mtk_tasks_text.tokens import END, PAD, VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

# As T5 1.1 and mT5, but one embedding for bytes in and out, as in the first T5.
MODEL_CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "d_kv": 32,
    "num_heads": 4,
    "d_ff": 336,
    "num_layers": 4,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 64,
    "dropout_rate": 0.0,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": PAD,
}


class _Head:
    """The output layer: scores bytes by the embedding they are read with."""

    def __init__(self, embedding: nn.Embedding) -> None:
        self.embedding = embedding

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.embedding.weight)


def build(seed: int = 0) -> nn.Module:
    """Return a freshly initialised model; global random state is left alone."""
    # Through `resolve`, because it prepares the import of transformers.
    library = resolve("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = library.T5ForConditionalGeneration(
            library.T5Config(**MODEL_CONFIG)
        )
    # One embedding serves four places. Registered once, it has one name, as in the
    # checkpoint, and whoever loads or replaces it by name reaches all four.
    for stack in (model.encoder, model.decoder):
        del stack.embed_tokens
        object.__setattr__(stack, "embed_tokens", model.shared)
    del model.lm_head
    object.__setattr__(model, "lm_head", _Head(model.shared))
    ready: nn.Module = model.eval()
    return ready


def save(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model as a folder that transformers loads by ``from_pretrained``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    module: Any = model
    config = module.config.to_dict() | {
        "architectures": ["T5ForConditionalGeneration"],
        "dtype": str(dtype).removeprefix("torch."),
    }
    described = folder / CONFIG_NAME
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    described.write_text(text, encoding="utf-8")
    weights = {
        name: tensor.detach().to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    stored = folder / WEIGHTS_NAME
    save_file(weights, str(stored), metadata={"format": "pt"})
    # safetensors makes private files; give them the mode of any new file.
    stored.chmod(described.stat().st_mode)


def load(folder: Path) -> nn.Module:
    """Read a folder written by `save` into a float32 model in evaluation mode."""
    from safetensors.torch import load_file

    model = build()
    weights: Mapping[str, Tensor] = load_file(str(folder / WEIGHTS_NAME))
    model.load_state_dict(weights)
    return model
