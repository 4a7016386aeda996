from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtk.checkpoint import StateDict
from mtk.errors import CheckpointError, MtkError, ParameterError, UsageError
from mtk.folders import check_manifest
from mtk_adapters_lora import lora
from mtk_adapters_lora.combine import COMBINATIONS, combine
from mtk_adapters_lora.formats import load_adapter
from mtk_adapters_lora.lowrank import from_dense, from_factors, product_norm, randomised
from mtk_adapters_lora.sparsify import BASE_TYPES

GOLDEN = Path(__file__).parent / "golden"
EQUAL = [GOLDEN / "lora-a" / f"adapter_{i}" for i in range(3)]
RANKS = [GOLDEN / "lora-ranks" / f"adapter_{i}" for i in range(3)]


def deltas(path: Path) -> dict:
    adapter = load_adapter(path)
    result = {}
    for name, module in adapter.modules.items():
        a, b = adapter.factors(module)
        result[name] = module.scale * (b @ a)
    return result


def weighted(paths: list, weights: list) -> dict:
    parts = [deltas(path) for path in paths]
    return {
        n: sum(w * p[n] for w, p in zip(weights, parts, strict=True)) for n in parts[0]
    }


def same(new, want: dict) -> None:
    assert set(new.updates) == set(want)
    for name, delta in want.items():
        torch.testing.assert_close(new.delta(name), delta, rtol=1e-4, atol=1e-5)


def test_cat_is_the_weighted_sum_and_a_large_svd_too() -> None:
    weights = [1.0, -0.5, 0.25]
    want = weighted(RANKS, weights)
    same(combine(RANKS, weights), want)
    for kind in ("svd", "cat"):
        new = combine(RANKS, weights, kind, rank=12)
        same(new, want)
        assert new.relative_error < 1e-6


def test_the_reported_error_is_the_distance_to_the_exact_sum() -> None:
    want = weighted(RANKS, [1.0, 1.0, 1.0])
    for kind in ("svd", "cat"):
        new = combine(RANKS, combination=kind, rank=3)
        lost = sum(float((new.delta(n) - d).norm()) ** 2 for n, d in want.items())
        norm = sum(float(d.norm()) ** 2 for d in want.values())
        assert new.relative_error == pytest.approx((lost / norm) ** 0.5, rel=1e-4)
        assert 0 < new.relative_error < 1


@pytest.mark.parametrize("kind", [k for k in COMBINATIONS if k != "ziplora"])
def test_one_adapter_is_itself(kind: str) -> None:
    same(combine(EQUAL[:1], combination=kind), deltas(EQUAL[0]))


def test_equal_adapters_under_linear() -> None:
    want = {n: 4 * d for n, d in deltas(EQUAL[0]).items()}
    same(combine([EQUAL[0], EQUAL[0]], [1, 1], "linear"), want)


@pytest.mark.parametrize("kind", ["magnitude_prune", "dare_linear"])
def test_without_pruning_all_is_linear(kind: str) -> None:
    one, two = combine(EQUAL, combination=kind), combine(EQUAL, combination="linear")
    same(one, {name: two.delta(name) for name in two.updates})
    assert "away from the weighted sum" in two.notes[0]


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties", "dare_linear_svd"])
def test_dare_is_a_function_of_its_seed(kind: str) -> None:
    def first(seed: int) -> torch.Tensor:
        new = combine(EQUAL, combination=kind, density=0.5, seed=seed)
        return new.delta("layers.0.q_proj")

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_dare_has_the_expectation_of_the_sum() -> None:
    want = weighted(EQUAL, [1.0] * 3)["layers.0.up"]
    total = torch.zeros_like(want)
    for seed in range(300):
        new = combine(
            EQUAL, combination="dare_linear_svd", density=0.7, rank=12, seed=seed
        )
        total += new.delta("layers.0.up")
    assert (total / 300 - want).norm() / want.norm() < 0.1


def test_ties_against_a_plain_reference() -> None:
    parts, weights = [deltas(path) for path in EQUAL], [0.5, 0.3, -0.8]
    new = combine(EQUAL, weights, "ties_svd", density=0.4, rank=16)
    for name in parts[0]:
        kept = []
        for part in parts:
            flat = part[name].flatten().clone()
            order = flat.abs().argsort(descending=True)
            flat[order[int(0.4 * flat.numel()) :]] = 0
            kept.append(flat.tolist())
        want = []
        for column in zip(*kept, strict=True):
            sign = 1 if sum(column) >= 0 else -1
            agree = [
                w * x for w, x in zip(weights, column, strict=True) if x * sign > 0
            ]
            want.append(sum(agree) / max(1, len(agree)))
        torch.testing.assert_close(
            new.delta(name).flatten(), torch.tensor(want), rtol=1e-4, atol=1e-5
        )


def test_weights_per_module() -> None:
    names = list(deltas(EQUAL[0]))
    table = {name: float(i) for i, name in enumerate(names)}
    want = {n: table[n] * d for n, d in deltas(EQUAL[0]).items()}
    same(combine(EQUAL[:1], [table]), want)
    with pytest.raises(ParameterError, match="lack"):
        combine(EQUAL[:1], [{"other": 1.0}])


def test_clamping_cuts_large_entries() -> None:
    new = combine(EQUAL, combination="svd", clamp=0.9)
    plain = combine(EQUAL, combination="svd")
    assert new.relative_error > plain.relative_error
    with pytest.raises(ParameterError, match="clamp"):
        combine(EQUAL, combination="cat", clamp=0.9)


@pytest.mark.parametrize("kind", BASE_TYPES)
def test_factor_types_need_equal_ranks(kind: str) -> None:
    with pytest.raises(UsageError, match="equal ranks"):
        combine(RANKS, combination=kind)


@pytest.mark.parametrize(
    "options",
    [
        {"combination": "tie"},
        {"rank": 0},
        {"rank": 2.0},
        {"combination": "linear", "rank": 2},
        {"density": 0.0},
        {"density": 1.5},
        {"sign_method": "mean"},
        {"weights": [1.0]},
        {"weights": [1.0, 1.0, float("nan")]},
        {"weights": [1.0, 1.0, "1"]},
        {"column_scales": [{}, {}, {}]},
        {"combination": "ziplora"},
    ],
)
def test_wrong_parameters(options: dict) -> None:
    with pytest.raises(MtkError):
        combine(EQUAL, **options)


def make(folder: Path, tensors: dict, **config: object) -> Path:
    folder.mkdir()
    tensors = {f"base_model.model.{k}": v.clone() for k, v in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    text = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config
    (folder / "adapter_config.json").write_text(json.dumps(text))
    return folder


def test_modules_that_only_some_adapters_have(tmp_path: Path) -> None:
    a, b = torch.randn(2, 6), torch.randn(8, 2)
    q = {"q.lora_A.weight": a, "q.lora_B.weight": b}
    p = {"m.q.lora_A.weight": a, "m.q.lora_B.weight": b}
    new = combine([make(tmp_path / "x", q), make(tmp_path / "y", q | p)])
    assert {name: u.rank for name, u in new.updates.items()} == {"q": 4, "m.q": 2}
    # One module's name is the end of the other's, and the ranks differ.
    again = load_adapter(new.save(tmp_path / "new"))
    for name, module in again.modules.items():
        stored_a, stored_b = again.factors(module)
        torch.testing.assert_close(module.scale * stored_b @ stored_a, new.delta(name))


def test_what_cannot_be_combined(tmp_path: Path) -> None:
    a, b = torch.randn(2, 6), torch.randn(8, 2)
    good = {"q.lora_A.weight": a, "q.lora_B.weight": b}
    plain = make(tmp_path / "plain", good)
    odd = [
        make(tmp_path / "1", good | {"n.weight": torch.ones(3)}),
        make(tmp_path / "2", good | {"q.lora_magnitude_vector": torch.ones(8)}, use_dora=True),
        make(tmp_path / "3", good | {"q.lora_B.bias": torch.ones(8)}),
        make(tmp_path / "4", {"q.lora_A.weight": a[:, :5], "q.lora_B.weight": b}),
        make(tmp_path / "5", good, fan_in_fan_out=True),
        make(tmp_path / "6", {"q.lora_A.weight": a / 0, "q.lora_B.weight": b}),
    ]  # fmt: skip
    for path in odd:
        with pytest.raises(CheckpointError) as caught:
            combine([plain, path])
        assert len(str(caught.value).splitlines()) <= 3
    with pytest.raises(UsageError, match="no adapters"):
        combine([])


def test_formats_meet_under_the_names_of_the_base(tmp_path: Path) -> None:
    a, b = torch.randn(2, 6), torch.randn(8, 2)
    file = tmp_path / "kohya.safetensors"
    stem = "lora_unet_mid_to_q"
    save_file({f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}, file)
    other = make(
        tmp_path / "peft", {"mid.to_q.lora_A.weight": a, "mid.to_q.lora_B.weight": b}
    )
    with pytest.raises(UsageError, match="base"):
        combine([file, other])
    base = StateDict({"mid.to_q.weight": torch.zeros(8, 6)}, "unet")
    new = combine([file, other], [1.0, 2.0], base=base)
    torch.testing.assert_close(new.delta("mid.to_q"), 3 * b @ a)


def test_a_convolution_keeps_its_shape(tmp_path: Path) -> None:
    a, b = torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1)
    path = make(tmp_path / "x", {"c.lora_A.weight": a, "c.lora_B.weight": b})
    new = combine([path, path], combination="svd")
    want = 2 * torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    torch.testing.assert_close(new.delta("c"), want, rtol=1e-4, atol=1e-5)
    saved = new.save(tmp_path / "new")
    base = StateDict({"c.weight": torch.zeros(5, 3, 3, 3)}, "base")
    torch.testing.assert_close(
        lora.open(saved, base=base).read("c.weight"), want, rtol=1e-4, atol=1e-5
    )


def test_saving_is_complete_or_absent(tmp_path: Path) -> None:
    new = combine(EQUAL, [0.5, 0.3, -0.4])
    folder = new.save(tmp_path / "new", dtype="bfloat16")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    ]  # fmt: skip
    report = json.loads((folder / "manifest.json").read_text())
    assert len(report["adapters"][0]["sha256"]) == 64
    assert check_manifest(folder, contents=True) == report
    stored = load_file(folder / "adapter_model.safetensors")
    assert all(t.dtype == torch.bfloat16 for t in stored.values())
    with pytest.raises(UsageError, match="exists"):
        new.save(folder)
    with pytest.raises(UsageError, match="overlap"):
        new.save(new.inputs[0].parent, overwrite=True)
    new.save(folder, overwrite=True)
    stored = load_file(folder / "adapter_model.safetensors")
    assert all(t.dtype == torch.float32 for t in stored.values())
    with pytest.raises(UsageError, match="does not exist"):
        new.save(tmp_path / "no" / "new")
    with pytest.raises(ParameterError, match="dtype"):
        new.save(tmp_path / "other", dtype="int8")
    name = next(iter(new.updates))
    new.updates[name].a.mul_(1e30)
    with pytest.raises(UsageError, match="does not fit"):
        new.save(tmp_path / "other", dtype="float16")
    new.provenance = {("no", "key"): 1}
    with pytest.raises(TypeError):
        new.save(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_low_rank_from_factors_equals_the_dense_svd() -> None:
    a, b = torch.randn(7, 20), torch.randn(15, 7)
    for rank in (1, 3, 7, 30):
        one, two = from_factors(a, b, rank), from_dense(b @ a, rank)
        torch.testing.assert_close(one.b @ one.a, two.b @ two.a, rtol=1e-3, atol=1e-4)
        assert one.error == pytest.approx(two.error, rel=1e-4, abs=1e-5)
        assert one.norm == pytest.approx(product_norm(a, b), rel=1e-5)


def test_the_randomised_svd_is_nearly_the_best() -> None:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(150, 8, generator=g) @ torch.randn(8, 120, generator=g)
    matrix += 0.05 * torch.randn(150, 120, generator=g)
    low = randomised(matrix, 8, torch.Generator().manual_seed(1))
    assert low.a.shape == (8, 120)
    assert low.error == pytest.approx(from_dense(matrix, 8).error, rel=0.02)
    again = randomised(matrix, 8, torch.Generator().manual_seed(1))
    assert torch.equal(low.a, again.a)
