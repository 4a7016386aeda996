"""mergekit-moe files: read, or refused with their line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mtk.errors import UsageError
from mtk_adapters_moe import recipe, upcycle

if TYPE_CHECKING:
    from pathlib import Path

FULL = """\
base_model: models/donor
gate_mode: cheap_embed
dtype: bfloat16
experts:
  - source_model: models/a
    positive_prompts: ["one", "two"]
    negative_prompts:
      - three
    noise_scale: 0.1
  - source_model: models/b
    positive_prompts: [four]
    residual_scale: 0.5
experts_per_token: 1
shared_experts:
  - source_model: models/c
    positive_prompts: [five]
    residual_scale: 0.25
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "moe.yml"
    path.write_text(text)
    return path


def test_everything(tmp_path):
    assert recipe.read(write(tmp_path, FULL)) == {
        "donor": "models/donor",
        "experts": ["models/a", "models/b"],
        "gate": "cheap_embed",
        "prompts": [["one", "two"], ["four"]],
        "negative_prompts": [["three"], []],
        "noise_scale": [0.1, 0.0],
        "residual_scale": [1.0, 0.5],
        "top_k": 1,
        "dtype": "bfloat16",
        "shared_expert": "models/c",
        "shared_prompts": ["five"],
        "shared_scale": 0.25,
    }


def test_the_default_gate_is_that_of_mergekit(tmp_path):
    text = "base_model: a\nexperts: [{source_model: b}]\n"
    read = recipe.read(write(tmp_path, text))
    assert read["gate"] == "hidden"
    assert "top_k" not in read


def test_a_recipe_can_be_carried_out(dense, tmp_path):
    donor, other = dense("Llama")[1], dense("Llama", 1)[1]
    text = (
        f"base_model: {donor}\nexperts:\n"
        f"- {{source_model: {donor}, positive_prompts: [ab]}}\n"
        f"- {{source_model: {other}, positive_prompts: [xyz]}}\n"
    )
    request = recipe.read(write(tmp_path, text))
    result = upcycle(output=tmp_path / "out", **request)
    assert (result.family, result.params["gate"]) == ("mixtral", "hidden")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "line 1: the file must be a table"),
        ("- a\n", "line 1: the file must be a table"),
        ("base_model: a\n", "names no experts"),
        ("base_model: a\nexperts: [{}]\n", "source_model is missing"),
        ("experts:\n- source_model: a\n", "line 1: base_model is missing"),
        ("base_model: a\nexpert: []\n", "line 2: .*did you mean 'experts'"),
        (FULL.replace("noise_scale", "noise_scal"), "line 9: .*'noise_scale'"),
        (FULL.replace("0.1", "loud"), "line 9: noise_scale must be a number"),
        (FULL.replace("[four]", "four"), "line 11: positive_prompts must be a list"),
        (FULL.replace("[four]", "[4]"), "line 11: positive_prompts must be a list"),
        (FULL.replace("models/donor", "[a]"), "line 1: base_model must be a text"),
        (FULL.replace("models/b", "models/b+lora"), "line 10: .*a LoRA"),
        (FULL + "  - source_model: models/d\n", "line 14: at most one"),
        (FULL + "dtype: float32\n", "line 18: 'dtype' stands twice"),
        ("base_model: &a x\nexperts: [*a]\n", "aliases"),
        ("base_model: {\n", "not valid YAML"),
        ("base_model: !!python/object:os.system x\nexperts: []\n", "not valid YAML"),
        ("[" * 5000, "nests deeper"),
        ("a: " + "x" * 200_001, "larger than"),
    ],
)
def test_refusals(tmp_path, text, match):
    with pytest.raises(UsageError, match=match) as caught:
        recipe.read(write(tmp_path, text))
    assert len(str(caught.value).splitlines()) <= 3


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        recipe.read(tmp_path / "gone.yml")
