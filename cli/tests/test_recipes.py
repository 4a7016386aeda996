"""``mtk merge recipe.toml OUT``, with nothing installed but a toy plugin."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

RECIPE = """
method = "toy_mean"
experts = ["e0.safetensors", "e1.safetensors"]
params.scale = 0.5
[[rule]]
match = "c.*"
params.scale = 2.0
"""


@pytest.fixture
def recipe(models, toy):
    (toy / "recipe.toml").write_text(RECIPE)
    return toy


def test_a_recipe_is_merged_and_told(mtk, recipe):
    outcome = mtk("merge", "recipe.toml", "m.safetensors")
    assert outcome.code == 0, outcome.err
    merged, e0, e1 = (load_file(f"{n}.safetensors") for n in ("m", "e0", "e1"))
    for name, scale in (("a.weight", 0.5), ("c.weight", 2.0)):
        torch.testing.assert_close(merged[name], scale * (e0[name] + e1[name]) / 2)
    assert "m.safetensors: " in outcome.out
    assert "copied" in outcome.out


def test_the_output_may_be_an_option_or_an_argument_and_is_needed(mtk, recipe):
    assert mtk("merge", "recipe.toml", "-o", "one.safetensors").code == 0
    assert mtk("merge", "recipe.toml", "two.safetensors").code == 0
    one, two = load_file("one.safetensors"), load_file("two.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    outcome = mtk("merge", "recipe.toml")
    assert (outcome.code, "mtk merge recipe.toml OUT" in outcome.err) == (2, True)
    outcome = mtk("merge", "recipe.toml", "a.safetensors", "-o", "b.safetensors")
    assert (outcome.code, "two outputs" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    "option",
    [
        ["--method", "toy_mean"],
        ["--expert", "e0.safetensors"],
        ["--base", "base.safetensors"],
        ["--param", "scale=1"],
        ["--only", "c.*"],
        ["--dtype", "float32"],
        ["--shard-size", "5GB"],
        ["--donor", "e0.safetensors"],
    ],
    ids=lambda option: option[0],
)
def test_a_recipe_leaves_nothing_to_options(mtk, recipe, option):
    outcome = mtk("merge", "recipe.toml", "m.safetensors", *option)
    assert outcome.code == 2
    assert f"leave out {option[0]}" in outcome.err
    assert not (recipe / "m.safetensors").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(mtk, recipe):
    before = set(recipe.iterdir())
    outcome = mtk("merge", "recipe.toml", "m.safetensors", "--dry-run")
    assert outcome.code == 0, outcome.err
    for words in ("toy_mean", "merged:       3", "copied:       1", "reads:", "disk:"):
        assert words in outcome.out
    data = mtk("merge", "recipe.toml", "--dry-run", "--json").json
    # Three float32 matrices of two experts; the integer is compared in both.
    assert data["reads"] == 2 * 4 * (16 + 16 + 8) + 2 * 8
    assert data["disk"] == 4 * (16 + 16 + 8) + 8
    assert data["mismatches"] == []
    assert set(recipe.iterdir()) == before


def test_a_dry_run_lists_every_mismatch_once(mtk, recipe):
    """On stdout; the last line, on stderr, counts them."""
    state = load_file("e1.safetensors")
    del state["a.weight"]
    state["b.weight"] = torch.ones(2, 2)
    state["c.weight"] = state["c.weight"].half()
    state["d.weight"] = torch.ones(1)
    save_file(state, "e1.safetensors")
    before = set(recipe.iterdir())
    outcome = mtk("merge", "recipe.toml", "m.safetensors", "--dry-run")
    assert outcome.code == 2
    lines = [line for line in outcome.out.splitlines() if line.startswith("mismatch:")]
    assert len(lines) == len(set(lines)) == 4
    for name in "abcd":
        assert sum(f"'{name}.weight'" in line for line in lines) == 1
    assert "4 mismatches" in outcome.err
    data = mtk("merge", "recipe.toml", "--dry-run", "--json")
    assert data.code == 2
    assert len(data.json["mismatches"]) == 4
    assert set(recipe.iterdir()) == before
    outcome = mtk("merge", "recipe.toml", "m.safetensors")
    assert outcome.code == 2
    assert set(recipe.iterdir()) == before


def test_a_mismatch_inside_a_stage_is_listed_too(mtk, recipe):
    save_file({"a.weight": torch.ones(4, 4)}, "odd.safetensors")
    (recipe / "recipe.toml").write_text(
        'method = "toy_mean"\nexperts = ["s", "e0.safetensors"]\n'
        '[[stage]]\nname = "s"\nmethod = "toy_mean"\n'
        'experts = ["e0.safetensors", "odd.safetensors"]\n'
    )
    outcome = mtk("merge", "recipe.toml", "--dry-run")
    assert outcome.code == 2
    assert "'b.weight' is in e0 but not in odd" in outcome.out


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry-run"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("params.scale", "params.scal"), "did you mean 'scale'"),
        (("params.scale = 0.5", "params.scale = 5.0"), "<= 2"),
        (("params.scale = 0.5", 'params.scale = "x"'), "takes a number"),
        (('"c.*"', '"d.*"'), "rule 1: no tensor fits 'd.*'"),
        (("toy_mean", "toy_maen"), "did you mean"),
        (("match", "macth"), "did you mean 'match'"),
        (("experts", "expert"), "did you mean 'experts'"),
        (("e1.safe", "e7.safe"), "e7.safetensors"),
        (("method =", "method"), "not a TOML recipe"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(mtk, recipe, change, words, dry):
    (recipe / "recipe.toml").write_text(RECIPE.replace(*change))
    before = set(recipe.iterdir())
    outcome = mtk("merge", "recipe.toml", "m.safetensors", *dry)
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) <= 3
    assert set(recipe.iterdir()) == before


def test_a_folder_comes_with_its_card_and_manifest(mtk, recipe):
    import json

    outcome = mtk("merge", "recipe.toml", "out")
    assert outcome.code == 0, outcome.err
    assert {file.name for file in (recipe / "out").iterdir()} == {
        "README.md",
        "manifest.json",
        "model.safetensors",
    }
    manifest = json.loads((recipe / "out" / "manifest.json").read_text())
    (job,) = manifest["merge"]
    assert job["method"] == "toy_mean"
    assert job["varied"] == 1
    assert [item["name"] for item in manifest["inputs"]] == [
        "e0.safetensors",
        "e1.safetensors",
    ]
    assert manifest["donor"] == "e0.safetensors"


def test_the_bar_ends_at_the_end(mtk, recipe, monkeypatch):
    """Every byte that was expected is reported, and none besides."""
    from mtk_cli import progress

    shares = []
    told = progress.Reporter.__call__

    def note(self, message, share=None):
        shares.append(share)
        told(self, message, share)

    monkeypatch.setattr(progress.Reporter, "__call__", note)
    (recipe / "e.toml").write_text(
        'method = "toy_mean"\nexperts = ["u0.safetensors", "u1.safetensors"]\n'
    )
    for name in ("u0", "u1"):  # without tied tensors, which are read once
        save_file({"w": torch.randn(64, 64), "n": torch.ones(3)}, f"{name}.safetensors")
    assert mtk("merge", "e.toml", "m.safetensors").code == 0
    assert shares[0] is None
    assert shares[-1] == 1.0
    assert shares[1:] == sorted(shares[1:])
