"""LoRA adapters as experts of a full base: any full-weight method, from the command line."""

from __future__ import annotations

import json
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
