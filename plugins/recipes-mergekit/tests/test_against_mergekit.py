"""Every recipe in ``reference/``, run by mtk, against what mergekit 0.1.5 made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import mtk

REFERENCE = Path(__file__).parent / "reference"
NAMES = sorted(path.stem for path in REFERENCE.glob("*.yml"))
# Results are sums of a few float32 numbers below 1.3, which mergekit adds in another
# order. Means on the sphere round in every step, where mtk takes float64.
CLOSE = {"rtol": 0.0, "atol": 2.0**-22}
TOLERANCES = {
    "karcher": {"rtol": 0.0, "atol": 2.0**-20},
    "karcher_base": {"rtol": 0.0, "atol": 2.0**-20},
    "multislerp": {"rtol": 0.0, "atol": 2.0**-21},
    "half": {"rtol": 2.0**-8, "atol": 2.0**-22},  # one rounding to bfloat16 in both
    # mergekit rounds models, differences and sums to bfloat16: 8 bits of 0.2 and of 1.
    "half_inside": {"rtol": 2.0**-7, "atol": 2.0**-10},
}
RANDOM = {"dare_one", "dare_none"}
NEEDED = {"mtk-methods-weights", "mtk-adapters-full", "mtk-adapters-lora"}


def missing():
    return NEEDED - {plugin.distribution for plugin in mtk.load().plugins}


pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")


@pytest.fixture(autouse=True)
def _inside(models, monkeypatch):
    """Recipes name models relative to the working directory, as for mergekit."""
    monkeypatch.chdir(models)


def expected(name):
    path = REFERENCE / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def test_the_reference_is_complete_and_of_one_version():
    assert len(NAMES) >= 20
    assert {expected(name)[1]["mergekit"] for name in NAMES} == {"0.1.5"}


@pytest.mark.parametrize("name", sorted({*NAMES} - RANDOM))
def test_values_are_mergekits(name):
    tensors, about = expected(name)
    found = mtk.merge(REFERENCE / f"{name}.yml").tensors
    assert set(found) == set(tensors)
    assert {str(t.dtype).removeprefix("torch.") for t in found.values()} == {
        about["dtypes"]
    }
    for key, value in tensors.items():
        torch.testing.assert_close(
            found[key].float(), value, msg=key, **TOLERANCES.get(name, CLOSE)
        )


@pytest.mark.parametrize("name", ["stack", "tokens_union", "ties", "half", "multi"])
def test_folders_have_the_config_of_mergekits(name, tmp_path):
    tensors, about = expected(name)
    mtk.merge(REFERENCE / f"{name}.yml", output=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert str(config["num_hidden_layers"]) == about["layers"]
    assert str(config["vocab_size"]) == about["tokens"]
    stored = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        stored |= load_file(file)
    assert set(stored) == set(tensors)


CASES = json.loads((REFERENCE / "random.json").read_text())["cases"]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_random_recipes_give_what_mergekit_made_of_them(number, maker, tmp_path):
    """Levels, filters, gradients and slices in combinations that nobody thought of."""
    path = tmp_path / "config.yml"
    path.write_text(CASES[number]["recipe"])
    expected = CASES[number]["prints"]
    found = {
        name: maker.fingerprint(tensor.flatten().tolist())
        for name, tensor in mtk.merge(path).tensors.items()
    }
    # A print adds up to 640 entries, each right to about 1e-7.
    assert found == pytest.approx(expected, rel=0, abs=2e-5)


def changes(tensors, models):
    base = load_file(models / "base" / "model.safetensors")
    return {name: value - base[name] for name, value in tensors.items()}


def test_dare_keeps_the_sum_of_magnitudes_of_every_tensor(models):
    """The one thing about rescale that does not depend on the draw."""
    theirs = changes(expected("dare_one")[0], models)
    ours = changes(mtk.merge(REFERENCE / "dare_one.yml").tensors, models)
    whole = changes(load_file(models / "a" / "model.safetensors"), models)
    for name, change in ours.items():
        total = change.abs().sum()
        torch.testing.assert_close(
            total, theirs[name].abs().sum(), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            total, 0.5 * whole[name].abs().sum(), rtol=1e-4, atol=1e-5
        )


def test_dare_without_rescale_keeps_or_drops(models):
    whole = changes(load_file(models / "a" / "model.safetensors"), models)
    shares = []
    for tensors in (
        expected("dare_none")[0],
        mtk.merge(REFERENCE / "dare_none.yml").tensors,
    ):
        kept = total = 0
        for name, change in changes(tensors, models).items():
            there, full = whole[name] != 0, 0.5 * whole[name]
            dropped = change.abs() < 1e-7
            assert bool((dropped | ((change - full).abs() < 3e-7)).all()), name
            kept += int((there & ~dropped).sum())
            total += int(there.sum())
        shares.append(kept / total)
    # 5,700 draws at 0.4: four standard deviations are 0.026.
    assert shares == pytest.approx([0.4, 0.4], abs=0.026)
