"""Three small models to merge, and what a complete folder is."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from mtk.folders import check_manifest

if TYPE_CHECKING:
    from pathlib import Path

MERGE = (
    "merge",
    "-m",
    "task_arithmetic",
    "--base",
    "base",
    "--expert",
    "e0",
    "--expert",
    "e1",
)
MERGE += ("-p", "scale=0.5", "--workers", "1", "--shard-size", "500B")  # fmt: skip


def state(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"lm_head.weight": (12, 8), "model.layers.0.mlp.up_proj.weight": (8, 8)}
    return {n: torch.randn(s, generator=draw) for n, s in shapes.items()}


def write_model(folder: Path, seed: int) -> Path:
    folder.mkdir()
    save_file(state(seed), folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def contents(*folders: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def check_result(folder: Path) -> None:
    """A complete merge with the right numbers."""
    assert check_manifest(folder, contents=True) is not None
    merged = {}
    for file in folder.glob("*.safetensors"):
        merged |= load_file(file)
    base, one, two = state(0), state(1), state(2)
    for name, tensor in base.items():
        wanted = tensor + 0.5 * ((one[name] - tensor) + (two[name] - tensor))
        torch.testing.assert_close(merged[name], wanted)


def remains(place: Path) -> list[str]:
    return sorted(
        path.name for path in place.iterdir() if path.name not in ("base", "e0", "e1")
    )
