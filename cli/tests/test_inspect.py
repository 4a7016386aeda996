"""``mtk inspect``."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file


def test_a_model_alone(mtk, models, toy):
    outcome = mtk("inspect", "base.safetensors")
    assert outcome.code == 0
    assert "4 tensors" in outcome.out
    assert "'b.weight' equals 'a.weight'" in outcome.out
    assert "1 finding" in outcome.out


def test_against_the_base_and_with_others(mtk, models, toy):
    outcome = mtk(
        "inspect", "e0.safetensors", "--against", "base.safetensors",
        "--with", "e1.safetensors", "--json",
    )  # fmt: skip
    seen = json.loads(outcome.out)
    names = [found["model"] for found in seen["differences"]]
    assert [name.removesuffix(".safetensors") for name in names] == ["e0", "e1"]
    assert seen["differences"][0]["norm"] > 0
    assert seen["schema"] == 1
    text = mtk("inspect", "e0.safetensors", "--against", "base.safetensors").out
    assert "norm" in text
    assert "e0" in text


def test_no_finding_is_said_honestly(mtk, toy):
    save_file({"w.weight": torch.randn(3, 3)}, toy / "m.safetensors")
    out = mtk("inspect", "m.safetensors").out
    assert "no anomaly found by these checks" in out


def test_wrong_requests(mtk, models, toy):
    state = load_file(toy / "base.safetensors")
    state.pop("steps")
    save_file(state, toy / "less.safetensors")
    for arguments in (
        ("absent.safetensors",),
        ("e0.safetensors", "--with", "e1.safetensors"),
        ("less.safetensors", "--against", "base.safetensors"),
    ):
        outcome = mtk("inspect", *arguments)
        assert outcome.code == 2
        assert 0 < len(outcome.err.splitlines()) <= 3
