from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

import mtk
from mtk.checkpoint import StateDict
from mtk.errors import CheckpointError
from mtk.loading import Registry
from mtk_adapters_lora import lora
from mtk_adapters_lora.plugin import mtk_adapters

if TYPE_CHECKING:
    from pathlib import Path

torch.manual_seed(0)
BASE = {
    "model.emb.weight": torch.randn(10, 6),
    "model.q.weight": torch.randn(8, 6),
    "model.q.bias": torch.randn(8),
    "model.sq.weight": torch.randn(6, 6),
    "model.conv.weight": torch.randn(5, 3, 2, 2),
    "model.norm.weight": torch.randn(6),
}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}


def base(dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> StateDict:
    return StateDict({k: v.to(dtype) for k, v in (BASE | more).items()}, "base")


def pair(out: int, inp: int, rank: int = 2, seed: int = 1) -> tuple:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rank, inp, generator=g), torch.randn(out, rank, generator=g)


def peft(
    folder: Path, tensors: dict, *, prefix: str = "base_model.model.", **config: object
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + k: v.clone() for k, v in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def linear(module: str, out: int, inp: int, rank: int = 2, seed: int = 1) -> dict:
    a, b = pair(out, inp, rank, seed)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def test_the_declaration() -> None:
    (adapter,) = mtk_adapters()
    assert adapter.kind == "lora"
    assert adapter.views == ("products", "factors")


def test_a_changed_tensor_is_base_plus_update_and_others_are_the_base_itself(
    tmp_path: Path,
) -> None:
    source = base()
    opened = lora.open(
        peft(tmp_path / "x", linear("model.q", 8, 6)), view="products", base=source
    )
    a, b = pair(8, 6)
    assert opened.kind == "lora"
    assert opened.names() == source.names()
    want = BASE["model.q.weight"] + 3.0 * (b @ a)
    torch.testing.assert_close(opened.read("model.q.weight"), want)
    for name in set(BASE) - {"model.q.weight"}:
        assert opened.read(name).data_ptr() == source.read(name).data_ptr()
    assert torch.equal(source.read("model.q.weight"), BASE["model.q.weight"])


def test_an_update_smaller_than_the_spacing_of_bfloat16_survives(
    tmp_path: Path,
) -> None:
    path = peft(tmp_path / "x", linear("model.q", 8, 6), lora_alpha=2e-4)
    source = base(torch.bfloat16)
    opened = lora.open(path, base=source)
    value, before = opened.read("model.q.weight"), source.read("model.q.weight")
    assert opened.info("model.q.weight").dtype == "bfloat16"
    assert value.dtype == torch.float32
    a, b = pair(8, 6)
    torch.testing.assert_close(
        value - before.float(), 1e-4 * (b @ a), atol=3e-7, rtol=0
    )
    assert (value.to(torch.bfloat16) == before).float().mean() > 0.9


def test_every_rule_of_scaling(tmp_path: Path) -> None:
    tensors = linear("model.q", 8, 6, 4) | linear("model.sq", 6, 6, 2)
    cases = [
        ({"r": 2, "rank_pattern": {"q": 4}}, 6 / 4, 6 / 2),
        ({"r": 2, "rank_pattern": {"model.q": 4}, "alpha_pattern": {"^model.sq": 8}}, 1.5, 4),
        ({"r": 4, "rank_pattern": {r".*\.sq": 2}, "use_rslora": True}, 3, 6 / 2**0.5),
    ]  # fmt: skip
    for i, (config, scale_q, scale_sq) in enumerate(cases):
        path = peft(tmp_path / str(i), tensors, **config)
        scales = lora.open(path, view="factors").scales
        assert scales == pytest.approx({"model.q": scale_q, "model.sq": scale_sq})


def test_embeddings_convolutions_transposed_weights_and_biases(tmp_path: Path) -> None:
    ea, eb = pair(6, 10)
    ca, cb = pair(5, 12)
    qa, qb = pair(8, 6)
    source = base(**{"model.t.weight": torch.randn(6, 8)})
    tensors = linear("model.t", 8, 6) | {
        "model.emb.lora_embedding_A": ea,
        "model.emb.lora_embedding_B": eb,
        "model.conv.lora_A.weight": ca.view(2, 3, 2, 2),
        "model.conv.lora_B.weight": cb.view(5, 2, 1, 1),
        "model.q.lora_A.weight": qa,
        "model.q.lora_B.weight": qb,
        "model.q.lora_B.bias": torch.ones(8),
        "model.norm.weight": torch.zeros(6),
    }
    path = peft(tmp_path / "x", tensors, lora_bias=True, modules_to_save=["norm"])
    opened = lora.open(path, base=source)
    want = {
        "model.emb.weight": 3 * (eb @ ea).T,
        "model.conv.weight": 3 * (cb @ ca).view(5, 3, 2, 2),
        "model.t.weight": 3 * (qb @ qa).T,
        "model.q.bias": torch.full((8,), 3.0),
        "model.norm.weight": -BASE["model.norm.weight"],
    }
    for name, delta in want.items():
        got = opened.read(name) - source.read(name)
        torch.testing.assert_close(got, delta, rtol=1e-4, atol=1e-5)
    assert set(opened.changed()) == {*want, "model.q.weight"}


def test_a_square_transposed_weight_follows_the_configuration(tmp_path: Path) -> None:
    source = base()
    for flag in (True, False):
        path = peft(tmp_path / str(flag), linear("model.sq", 6, 6), fan_in_fan_out=flag)
        a, b = pair(6, 6)
        delta = 3 * (b @ a)
        got = lora.open(path, base=source).read("model.sq.weight")
        want = BASE["model.sq.weight"] + (delta.T if flag else delta)
        torch.testing.assert_close(got, want)
    tensors = linear("model.sq", 6, 6) | linear("model.q", 8, 6)
    path = peft(tmp_path / "both", tensors, fan_in_fan_out=True)
    with pytest.raises(CheckpointError, match="square"):
        lora.open(path, base=source)


def test_names_may_differ_by_one_prefix(tmp_path: Path) -> None:
    a, b = pair(8, 6)
    want = BASE["model.q.weight"] + 3 * (b @ a)
    for i, module in enumerate(("q", "model.q", "language.model.q")):
        path = peft(tmp_path / str(i), linear(module, 8, 6))
        got = lora.open(path, base=base()).read("model.q.weight")
        torch.testing.assert_close(got, want)
    twice = base(**{"other.q.weight": torch.randn(8, 6)})
    with pytest.raises(CheckpointError, match="several"):
        lora.open(peft(tmp_path / "q", linear("q", 8, 6)), base=twice)
    with pytest.raises(CheckpointError, match="no weight"):
        lora.open(peft(tmp_path / "no", linear("model.z", 8, 6)), base=base())


def kohya(path: Path, alpha: float | None = 4.0) -> Path:
    a, b = pair(8, 6)
    stem = "lora_unet_down_blocks_0_to_q"
    tensors = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
    if alpha is not None:
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def test_kohya_names_are_found_in_the_base(tmp_path: Path) -> None:
    weight = torch.randn(8, 6)
    a, b = pair(8, 6)
    for i, (name, alpha, scale) in enumerate(
        [("down_blocks.0.to_q", 4.0, 2.0), ("unet.down_blocks.0.to_q", None, 1.0)]
    ):
        source = StateDict({f"{name}.weight": weight}, "base")
        opened = lora.open(kohya(tmp_path / f"{i}.safetensors", alpha), base=source)
        got = opened.read(f"{name}.weight")
        torch.testing.assert_close(got, weight + scale * (b @ a))
    collision = {
        "a.down_blocks.0.to_q.weight": weight,
        "a.down.blocks_0.to_q.weight": weight,
    }
    with pytest.raises(CheckpointError, match="several"):
        lora.open(tmp_path / "0.safetensors", base=StateDict(collision, "base"))


def diffusers(path: Path, metadata: dict | None, **more: torch.Tensor) -> Path:
    path.mkdir()
    text = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else {}
    tensors = linear("unet.mid.to_q", 8, 6) | linear("text_encoder.fc", 4, 6) | more
    save_file(tensors, path / "pytorch_lora_weights.safetensors", text)
    return path


def test_diffusers_alphas_stand_in_the_metadata(tmp_path: Path) -> None:
    metadata = {
        "unet.r": 2, "unet.lora_alpha": 8, "unet.target_modules": ["to_q"],
        "text_encoder.r": 2, "text_encoder.lora_alpha": 2,
    }  # fmt: skip
    path = diffusers(tmp_path / "x", metadata)
    scales = lora.open(path, view="factors").scales
    assert scales == {"text_encoder.fc": 1.0, "unet.mid.to_q": 4.0}
    assert set(lora.open(diffusers(tmp_path / "y", None), view="factors").scales.values()) == {1.0}  # fmt: skip
    unet = StateDict({"mid.to_q.weight": torch.zeros(8, 6)}, "unet")
    with pytest.raises(CheckpointError, match="component"):
        lora.open(path, base=unet)
    a, b = pair(8, 6)
    got = lora.open(path, base=unet, component="unet").read("mid.to_q.weight")
    torch.testing.assert_close(got, 4 * (b @ a))
    with pytest.raises(CheckpointError, match="text_encoder, unet"):
        lora.open(path, base=unet, component="vae")
    with pytest.raises(CheckpointError, match="no scale"):
        lora.open(
            diffusers(tmp_path / "z", {"unet.r": 2, "unet.lora_alpha": 2}), base=unet
        )


def test_old_diffusers_names_of_attention_processors(tmp_path: Path) -> None:
    a, b = pair(8, 6)
    stem = "unet.mid.attn1.processor"
    file = tmp_path / "x.safetensors"
    save_file(
        {
            f"{stem}.to_q_lora.down.weight": a,
            f"{stem}.to_q_lora.up.weight": b,
            f"{stem}.to_out_lora.down.weight": a.clone(),
            f"{stem}.to_out_lora.up.weight": b.clone(),
        },
        file,
    )
    assert lora.matches(file)
    scales = lora.open(file, view="factors").scales
    assert set(scales) == {"unet.mid.attn1.to_q", "unet.mid.attn1.to_out.0"}


def test_dora_is_folded_exactly(tmp_path: Path) -> None:
    magnitude = torch.rand(8) + 0.5
    tensors = linear("model.q", 8, 6) | {"model.q.lora_magnitude_vector": magnitude}
    got = lora.open(
        peft(tmp_path / "x", tensors, use_dora=True), base=base()
    ).read("model.q.weight")  # fmt: skip
    a, b = pair(8, 6)
    total = BASE["model.q.weight"] + 3 * (b @ a)
    want = magnitude[:, None] * total / total.norm(dim=1, keepdim=True)
    torch.testing.assert_close(got, want)


def test_factors_are_the_tensors_themselves(tmp_path: Path) -> None:
    path = peft(tmp_path / "x", linear("q", 8, 6))
    a, b = pair(8, 6)
    plain = lora.open(path, view="factors")
    named = lora.open(path, view="factors", base=base())
    assert plain.names() == ["q.lora_A.weight", "q.lora_B.weight"]
    assert named.names() == ["model.q.lora_A.weight", "model.q.lora_B.weight"]
    assert torch.equal(plain.read("q.lora_A.weight"), a)
    assert torch.equal(named.read("model.q.lora_B.weight"), b)
    assert plain.info("q.lora_A.weight").shape == (2, 6)


def test_matches_only_adapters(tmp_path: Path) -> None:
    plain = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(2)}, plain)
    assert not lora.matches(plain)
    assert not lora.matches(tmp_path)
    assert not lora.matches(tmp_path / "absent")
    assert lora.matches(kohya(tmp_path / "k.safetensors"))
    folder = peft(tmp_path / "p", linear("q", 8, 6))
    assert lora.matches(folder)
    assert lora.matches(folder / "adapter_model.safetensors")
    assert lora.open(folder / "adapter_model.safetensors", view="factors").names()
    assert lora.matches(diffusers(tmp_path / "d", None))


def test_what_an_adapter_alone_cannot_do(tmp_path: Path) -> None:
    path = peft(tmp_path / "x", linear("q", 8, 6))
    with pytest.raises(CheckpointError, match="holds changes"):
        lora.open(path)
    with pytest.raises(CheckpointError, match="cannot run"):
        lora.build(path)
    with pytest.raises(CheckpointError, match="no view"):
        lora.open(path, view="experts", base=base())


def task_sum(*, experts: list, base: torch.Tensor, scale: float) -> torch.Tensor:
    return base + scale * sum(expert - base for expert in experts)


def test_any_full_weight_method_merges_adapters(tmp_path: Path) -> None:
    method = mtk.Method(
        name="task_sum",
        target=task_sum,
        summary="sum",
        needs=mtk.Needs(base=True),
        params=(mtk.Param("scale", 1.0),),
    )
    source = base(torch.bfloat16)
    experts = [
        lora.open(
            peft(tmp_path / str(i), linear("model.q", 8, 6, seed=i), lora_alpha=0.5),
            base=source,
        )
        for i in (1, 2)
    ]
    merged = mtk.merge(method, experts=experts, base=source, registry=Registry())
    delta = 0.25 * sum(b @ a for a, b in (pair(8, 6, seed=i) for i in (1, 2)))
    want = (source.read("model.q.weight").float() + delta).to(torch.bfloat16)
    # Sums in another order may fall on the other side of a rounding edge.
    torch.testing.assert_close(
        merged.tensors["model.q.weight"], want, rtol=1e-2, atol=0
    )
    assert torch.equal(
        merged.tensors["model.emb.weight"], source.read("model.emb.weight")
    )
    output = tmp_path / "out.safetensors"
    mtk.merge(method, experts=experts, base=source, registry=Registry(), output=output)
    assert output.is_file()


def test_parts_are_parts_of_the_whole(tmp_path: Path) -> None:
    magnitude = torch.rand(8) + 0.5
    cases = {
        "plain": (linear("model.q", 8, 6), {}),
        "dora": (linear("model.q", 8, 6) | {"model.q.lora_magnitude_vector": magnitude},
                 {"use_dora": True}),
        "turned": (linear("model.t", 8, 6) | {"model.t.lora_magnitude_vector": magnitude},
                   {"use_dora": True}),
        "bias": (linear("model.q", 8, 6) | {"model.q.lora_B.bias": torch.ones(8),
                 "model.norm.weight": torch.zeros(6)}, {"lora_bias": True}),
    }  # fmt: skip
    source = base(**{"model.t.weight": torch.randn(6, 8)})
    for label, (tensors, config) in cases.items():
        opened = lora.open(peft(tmp_path / label, tensors, **config), base=source)
        assert opened.changed()
        for name in opened.names():
            whole = opened.read(name).flatten()
            for start, end in ((0, len(whole)), (1, 2), (3, len(whole)), (2, 5)):
                got = opened.part(name, start, end)
                torch.testing.assert_close(got, whole[start:end])
