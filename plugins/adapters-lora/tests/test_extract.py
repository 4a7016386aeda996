from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from mtk.checkpoint import SafetensorsCheckpoint, StateDict
from mtk.errors import CheckpointError, ParameterError
from mtk_adapters_lora import lora
from mtk_adapters_lora.extract import extract

if TYPE_CHECKING:
    from pathlib import Path


def models(noise: float = 0.0, rank: int = 3) -> tuple[dict, dict]:
    g = torch.Generator().manual_seed(0)
    base = {
        "a.weight": torch.randn(20, 12, generator=g),
        "b.weight": torch.randn(12, 12, generator=g),
        "norm.weight": torch.ones(12),
        "steps": torch.tensor([3]),
    }
    tuned = dict(base)
    for name in ("a.weight", "b.weight"):
        m, n = base[name].shape
        low = torch.randn(m, rank, generator=g) @ torch.randn(rank, n, generator=g)
        tuned[name] = base[name] + low + noise * torch.randn(m, n, generator=g)
    return base, tuned


def test_a_low_rank_change_is_found_again(tmp_path: Path) -> None:
    base, tuned = models()
    new = extract(base, tuned, 3)
    assert new.relative_error < 1e-5
    assert not new.left_out
    source = StateDict(base, "base")
    opened = lora.open(new.save(tmp_path / "new"), base=source)
    for name, tensor in tuned.items():
        torch.testing.assert_close(opened.read(name), tensor, rtol=1e-4, atol=1e-4)


def test_the_error_is_that_of_the_best_approximation() -> None:
    base, tuned = models(noise=0.3)
    new = extract(base, tuned, 3)
    lost = norm = 0.0
    for module in new.updates:
        s = torch.linalg.svdvals(tuned[f"{module}.weight"] - base[f"{module}.weight"])
        lost, norm = lost + float((s[3:] ** 2).sum()), norm + float((s**2).sum())
    assert new.relative_error == pytest.approx((lost / norm) ** 0.5, rel=1e-3)
    assert extract(base, tuned, 12).relative_error < 1e-5


def test_changes_that_no_factor_holds_are_reported() -> None:
    base, tuned = models()
    tuned["norm.weight"] = torch.full((12,), 2.0)
    new = extract(base, tuned, 3, only=["a.*"])
    assert set(new.updates) == {"a"}
    assert set(new.left_out) == {"b.weight", "norm.weight"}
    assert new.left_out["norm.weight"] == pytest.approx(12**0.5)
    assert "2 changed tensors" in new.notes[0]


def test_equal_seeds_give_equal_adapters_of_large_weights() -> None:
    base = {"a.weight": torch.zeros(200, 150)}
    tuned = {"a.weight": torch.randn(200, 150)}
    one, two, three = (extract(base, tuned, 4, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.updates["a"].a, two.updates["a"].a)
    assert not torch.equal(one.updates["a"].a, three.updates["a"].a)


def test_weights_stored_transposed_are_seen_by_their_biases() -> None:
    base, tuned = models()
    bias = {"a.bias": torch.zeros(12)}
    new = extract(base | bias, tuned | bias, 3)
    assert new.fan_in_fan_out
    assert new.updates["a"].a.shape == (3, 20)
    delta = tuned["a.weight"] - base["a.weight"]
    torch.testing.assert_close(new.delta("a"), delta, rtol=1e-4, atol=1e-4)
    more = {"c.weight": torch.zeros(4, 5), "c.bias": torch.zeros(4)}
    with pytest.raises(CheckpointError, match="transposed"):
        extract(base | bias | more, tuned | bias | more, 3)


def test_16_bit_inputs_are_subtracted_in_float32(tmp_path: Path) -> None:
    base, tuned = models()
    base16 = {k: v.bfloat16() if v.is_floating_point() else v for k, v in base.items()}
    save_file(base16, tmp_path / "base.safetensors")
    opened = SafetensorsCheckpoint([tmp_path / "base.safetensors"], "base")
    new = extract(opened, tuned, 12)
    delta = tuned["a.weight"] - base16["a.weight"].float()
    torch.testing.assert_close(new.delta("a"), delta, rtol=1e-4, atol=1e-4)


def test_what_is_refused() -> None:
    base, tuned = models()
    bad = [
        (base, base, {}),
        (base, tuned | {"x": torch.ones(1)}, {}),
        (base, tuned | {"a.weight": torch.ones(3, 4)}, {}),
        (base, tuned | {"a.weight": base["a.weight"] / 0}, {}),
        (base, tuned, {"only": ["none"]}),
    ]
    for one, two, options in bad:
        with pytest.raises(CheckpointError) as caught:
            extract(one, two, 2, **options)
        assert len(str(caught.value).splitlines()) <= 3
    for rank in (0, -1, 1.5, True):
        with pytest.raises(ParameterError):
            extract(base, tuned, rank)
