"""A CLIP small enough to train on one CPU thread, built and stored by open_clip.

The architecture is ``open_clip.model.CLIP`` itself, only narrow. Texts are read
byte by byte, so no vocabulary file is needed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtk_tasks_vision.data import MEAN, SIZE, STD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"

# Bytes are 0..255; the end token is the largest, because open_clip pools the text
# at the position of the largest token.
START, END = 256, 257
CONTEXT = 40
WIDTH = 64

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "image_size": SIZE,
        "patch_size": 4,
        "width": WIDTH,
        "layers": 4,
        "head_width": 16,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 258,
        "width": WIDTH,
        "heads": 4,
        "layers": 2,
    },
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "mean": [MEAN] * 3,
    "std": [STD] * 3,
    "size": [SIZE, SIZE],
    "mode": "RGB",
    "interpolation": "bilinear",
    "resize_mode": "squash",
}

DIGIT_NAMES = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)
PROMPT = "a photo of the digit {}"


def build(seed: int = 0) -> torch.nn.Module:
    """Return a freshly initialised model; global random state is left alone."""
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**MODEL_CONFIG)
    assert isinstance(model, torch.nn.Module)
    return model


def tokenize(texts: Sequence[str]) -> Tensor:
    """Encode texts as bytes between a start and an end token.

    Args:
        texts: n strings of at most ``CONTEXT - 2`` bytes in UTF-8.

    Returns:
        Tokens padded with zeros, int64 ``(n, CONTEXT)``.
    """
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        raw = text.encode()
        if len(raw) > CONTEXT - 2:
            raise ValueError(f"{text!r} has {len(raw)} bytes, over {CONTEXT - 2}")
        row[: len(raw) + 2] = torch.tensor([START, *raw, END])
    return tokens


def zero_shot_head(model: Any, prompt: str = PROMPT) -> Tensor:
    """Return the text embeddings of the ten digits, ``(10, WIDTH)``.

    As in the reference protocol they are not normalised, and nothing scales the
    logits: an image's logits are its embedding times this matrix transposed.
    """
    texts = [prompt.format(name) for name in DIGIT_NAMES]
    embeddings: Tensor = model.encode_text(tokenize(texts))
    return embeddings


def save(
    model: torch.nn.Module, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write the model as a folder that ``open_clip`` loads by ``local-dir:``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    described = folder / CONFIG_NAME
    described.write_text(text, encoding="utf-8")
    weights = {
        name: tensor.detach().to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    stored = folder / WEIGHTS_NAME
    save_file(weights, str(stored), metadata={"format": "pt"})
    # safetensors makes private files; give them the mode of any new file.
    stored.chmod(described.stat().st_mode)


def load(folder: Path) -> torch.nn.Module:
    """Read a folder written by `save` into a float32 model in evaluation mode."""
    from safetensors.torch import load_file

    model = build()
    model.load_state_dict(load_file(str(folder / WEIGHTS_NAME)))
    return model.eval()
