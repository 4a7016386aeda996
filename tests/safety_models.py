"""Two small model folders, one of which a test makes hostile, and what a merge may leave."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "what stands outside of the model's folder"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "merges": []}
}


def write_model(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (4, 3),
        "model.layers.0.mlp.up_proj.weight": (5, 3),
    }
    tensors = {n: torch.randn(s, generator=draw) for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


def make_place(tmp_path: Path) -> Path:
    """``good`` and ``bad``, which a test makes bad, and a file outside of both."""
    write_model(tmp_path / "good", 0)
    write_model(tmp_path / "bad", 1)
    (tmp_path / "outside").write_text(json.dumps({"secret": SECRET}))
    return tmp_path


def merge(child, place: Path, *more: object):
    """Merge with the bad model as the donor of config and tokenizer."""
    before = {p: p.lstat().st_mtime_ns for p in place.rglob("*") if not p.is_symlink()}
    outcome = child.mtk(
        "merge", "-m", "average", "--expert", "bad", "--expert", "good", "-o", "out", *more,
        cwd=place,
    )  # fmt: skip
    after = {p: p.lstat().st_mtime_ns for p in before}
    assert before == after
    return outcome


def written(place: Path) -> dict[str, bytes]:
    """All files of the result, of which none is a link, code, or from outside."""
    out = place / "out"
    for path in out.rglob("*"):
        assert not path.is_symlink()
        assert path.resolve().is_relative_to(out.resolve())
    files = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()
    }
    assert not any(SECRET.encode() in content for content in files.values())
    assert not any(name.endswith((".py", ".so", ".bin", ".pkl")) for name in files)
    return files


def nothing(place: Path) -> None:
    """No output of any name, and no rest of one."""
    allowed = {"good", "bad", "outside", "x", "hub", "evil"}
    assert {path.name for path in place.iterdir()} <= allowed
