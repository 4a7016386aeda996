"""The view of single experts, against the weights of the running models."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mtk
import mtk_adapters_moe
from mtk.adapters import Changes
from mtk.errors import CheckpointError, UsageError
from mtk.live import linear_layers
from mtk_adapters_moe import moe

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"]


def split(state: dict) -> dict:
    """Written anew for the tests: fused weights of a model -> one tensor per expert."""
    result = {}
    for name, tensor in state.items():
        block, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            half = tensor.shape[1] // 2
            for e in range(len(tensor)):
                result[f"{block}.{e}.gate_proj.weight"] = tensor[e, :half].clone()
                result[f"{block}.{e}.up_proj.weight"] = tensor[e, half:].clone()
        elif last == "down_proj" and tensor.dim() == 3:
            for e in range(len(tensor)):
                result[f"{block}.{e}.down_proj.weight"] = tensor[e].clone()
        else:
            result[name] = tensor.clone()
    return result


def equal(view, tensors: dict) -> None:
    assert view.names() == sorted(tensors)
    for name, tensor in tensors.items():
        assert view.info(name).shape == tuple(tensor.shape)
        assert torch.equal(view.read(name), tensor), name
        size = tensor.numel()
        for start, end in ((0, size), (size // 3, size // 2), (size - 1, size)):
            part = tensor.flatten()[start:end]
            assert torch.equal(view.part(name, start, end), part), name


@pytest.mark.parametrize("kind", MIXTURES)
def test_every_expert_is_a_tensor(mixture, kind):
    model, folder = mixture(kind)
    assert moe.matches(folder)
    view = moe.open(folder)
    assert view.kind == "moe"
    equal(view, split(model.state_dict()))


@pytest.mark.parametrize("kind", MIXTURES)
def test_fused_and_separate_files_look_the_same(mixture, tmp_path, kind):
    model, folder = mixture(kind)
    shutil.copy(folder / "config.json", tmp_path)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    assert any(t.dim() == 3 for t in state.values())
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert moe.matches(tmp_path)
    fused, separate = moe.open(tmp_path), moe.open(folder)
    assert fused.names() == separate.names()
    for name in fused.names():
        assert fused.info(name) == separate.info(name)
    equal(fused, split(state))


@pytest.mark.parametrize(
    ("kind", "fused"),
    [(kind, fused) for kind in [*MIXTURES, "gpt_oss"] for fused in (False, True)]
    + [("granite", False)],  # its names in memory are no file's
)
def test_pieces_cover_every_stored_entry_once(mixture, tmp_path, kind, fused):
    model, folder = mixture(kind)
    if fused:
        shutil.copy(folder / "config.json", tmp_path)
        state = {name: t.clone() for name, t in model.state_dict().items()}
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        folder = tmp_path
    view, layout = moe.open(folder), moe.layout(folder)
    stored = load_file(folder / "model.safetensors")
    seen = {name: torch.zeros(t.numel()) for name, t in stored.items()}
    for name in view.names():
        piece = layout.pieces.get(name)
        where, start = (name, 0) if piece is None else (piece.stored, piece.start)
        tensor = view.read(name).flatten()
        assert torch.equal(stored[where].flatten()[start : start + len(tensor)], tensor)
        seen[where][start : start + len(tensor)] += 1
    assert all(bool((count == 1).all()) for count in seen.values())
    assert {p.stored for p in layout.pieces.values()} == set(layout.stored)
    for name, info in layout.stored.items():
        assert info.shape == tuple(stored[name].shape)


def test_transposed_experts_are_sliced_along_the_first_dimension(mixture):
    model, folder = mixture("gpt_oss")
    state, view = model.state_dict(), moe.open(folder)
    block = "model.layers.1.mlp"
    for part in ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"):
        fused = state[f"{block}.experts.{part}"]
        for expert in range(4):
            name = f"{block}.experts.{expert}.{part}"
            assert torch.equal(view.read(name), fused[expert])
            assert view.info(name).role == "other"  # no x @ W.T
    assert torch.equal(
        view.read(f"{block}.gate.weight"), state[f"{block}.router.weight"]
    )
    assert mtk_adapters_moe.structure(folder).projections == (
        "down_proj",
        "gate_up_proj",
    )


def test_roles(mixture):
    view = moe.open(mixture("qwen2_moe")[1])
    block = "model.layers.0.mlp"
    linear = {n for n in view.names() if view.info(n).role == "linear"}
    for name in (
        "experts.3.gate_proj.weight",
        "experts.0.down_proj.weight",
        "gate.weight",
        "shared_expert.up_proj.weight",
        "shared_expert_gate.weight",
    ):
        assert f"{block}.{name}" in linear
    assert view.info("model.embed_tokens.weight").role == "embedding"
    assert view.info("model.layers.0.self_attn.q_proj.bias").role == "bias"


@pytest.mark.parametrize("kind", MIXTURES)
def test_structure(mixture, kind):
    model, folder = mixture(kind)
    found = mtk_adapters_moe.structure(folder)
    view = moe.open(folder)
    sparse = [i for i, x in enumerate(model.model.layers) if hasattr(x.mlp, "experts")]
    assert [layer.number for layer in found.layers] == sparse
    assert (found.experts_per_layer, found.experts_per_token) == (4, 2)
    assert found.projections == ("down_proj", "gate_proj", "up_proj")
    assert len(found.names) == 12 * len(sparse)
    state = model.state_dict()
    for layer in found.layers:
        experts = state[f"model.layers.{layer.number}.mlp.experts.down_proj"]
        names = found.of_layer(layer.number, "down_proj")
        assert torch.equal(torch.stack([view.read(n) for n in names]), experts)
        assert view.info(layer.router).shape == (4, 16)
        assert set(layer.shared) == (
            {"gate_proj", "up_proj", "down_proj"} if found.shared_experts else set()
        )
    has_shared = kind in ("qwen2_moe", "deepseek_v2", "deepseek_v3")
    assert found.shared_experts == int(has_shared)


def test_the_view_of_stored_tensors(mixture):
    folder = mixture("mixtral")[1]
    plain = moe.open(folder, view="tensors")
    stored = load_file(folder / "model.safetensors")
    assert plain.kind == "moe"
    assert plain.names() == sorted(stored)
    with pytest.raises(UsageError, match="experts or tensors"):
        moe.open(folder, view="products")


def test_dense_models_and_files_are_left_to_others(dense, mixture, tmp_path):
    assert not moe.matches(dense("Llama")[1])
    assert not moe.matches(mixture("mixtral")[1] / "model.safetensors")
    assert not moe.matches(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not moe.matches(tmp_path)


def test_the_adapter_is_found_before_that_of_plain_checkpoints(mixture):
    from mtk.loading import load

    registry = load()
    assert "moe" in [provided.item.name for provided in registry.adapters]
    assert not [p for p in registry.problems if "moe" in p.distribution]


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_model_runs_with_experts_as_modules(mixture, ids, run, kind):
    model, folder = mixture(kind)
    built, view = moe.build(folder), moe.open(folder)
    assert not built.training
    assert not any(p.requires_grad for p in built.parameters())
    torch.testing.assert_close(run(built, ids), run(model, ids), atol=1e-5, rtol=1e-5)
    own = dict(built.state_dict())
    assert set(own) == set(view.names())
    for name in view.names():
        assert torch.equal(own[name], view.read(name))
    experts = {n for n in view.names() if ".experts." in n}
    assert experts <= set(linear_layers(built))


def test_hooks_see_what_an_expert_is_given(mixture, ids, run):
    built = moe.build(mixture("mixtral")[1])
    seen = []
    for layer in built.model.layers:
        for expert in layer.mlp.experts:
            expert.up_proj.register_forward_hook(lambda m, i, o: seen.append(len(i[0])))
    run(built, ids)
    assert sum(seen) == 2 * 2 * ids.numel()  # layers, experts per token


def test_transposed_models_run_as_they_are(mixture, ids, run):
    model, folder = mixture("gpt_oss")
    assert torch.equal(run(moe.build(folder), ids), run(model, ids))


def test_no_code_is_run_or_carried_over(mixture, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(mixture("mixtral")[1], folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit")
    layout = moe.layout(folder)
    assert not [name for name in layout.files if name.endswith(".py")]
    assert "auto_map" not in json.loads(layout.files["config.json"])
    assert {"generation_config.json", "tokenizer.json"} <= set(layout.files)
    moe.build(folder)
    config["architectures"] = ["Evil"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no model class"):
        moe.build(folder)


def config_of(layout) -> dict:
    content = layout.files["config.json"]
    return json.loads(content if isinstance(content, bytes) else content.read_bytes())


def test_adapting_the_configuration(mixture, tmp_path):
    layout = moe.layout(mixture("mixtral")[1])
    new = moe.adapt(layout, Changes(dtype="bfloat16", rows=50, tied=True))
    assert (config_of(new)["dtype"], config_of(new)["vocab_size"]) == ("bfloat16", 50)
    assert config_of(new)["tie_word_embeddings"] is True
    assert new.pieces == layout.pieces
    old = tmp_path / "config.json"
    inner = {"torch_dtype": "float32", "vocab_size": 5}
    old.write_text(json.dumps({"torch_dtype": "float32", "text_config": inner}))
    layout = mtk.adapters.Layout(family="transformers", files={"config.json": old})
    aged = moe.adapt(layout, Changes(dtype="float16", rows=7))
    assert config_of(aged) == {
        "torch_dtype": "float16",
        "text_config": {"torch_dtype": "float16", "vocab_size": 7},
    }
    old.write_text("{}")
    with pytest.raises(CheckpointError, match="no vocab_size"):
        moe.adapt(layout, Changes(rows=7))


def test_another_tokenizer(mixture, tmp_path):
    layout = moe.layout(mixture("mixtral")[1])
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    theirs = mtk.adapters.Layout(
        files={
            "tokenizer.model": tmp_path / "tokenizer.model",
            "generation_config.json": b"theirs",
        }
    )
    new = moe.adapt(layout, Changes(tokenizer=theirs))
    assert set(new.files) == {
        "config.json",
        "generation_config.json",
        "tokenizer.model",
    }
    assert new.files["generation_config.json"] != b"theirs"
    assert config_of(new)["eos_token_id"] == 1
    other = mtk.adapters.Layout(
        files={"tokenizer.json": b"{}", "config.json": b'{"eos_token_id": 7}'}
    )
    assert config_of(moe.adapt(layout, Changes(tokenizer=other)))["eos_token_id"] == 7
    with pytest.raises(CheckpointError, match="has none"):
        moe.adapt(layout, Changes(tokenizer=mtk.adapters.Layout()))


def test_added_tokens(mixture, tmp_path):
    layout = moe.layout(mixture("mixtral")[1])
    found = moe.vocabulary(mixture("mixtral")[1])
    assert (found.rows, len(found.tokens), found.tokens["a"]) == (48, 48, 2)
    assert found.tensors == ("lm_head.weight", "model.embed_tokens.weight")
    for added in ({"<two>": 49, "<one>": 48}, {"<one>": 50}):  # the second with a gap
        new = moe.adapt(layout, Changes(added_tokens=added))
        for name, content in new.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            (tmp_path / name).write_bytes(data)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer.get_vocab() == {**found.tokens, **added}
        assert tokenizer("a<one>b").input_ids == [2, added["<one>"], 3]


def test_more_layers_are_stored_like_the_first(mixture):
    layout = moe.layout(mixture("mixtral")[1])
    new = moe.adapt(layout, Changes(layers=5))
    assert config_of(new)["num_hidden_layers"] == 5
    last = new.pieces["model.layers.4.mlp.experts.3.up_proj.weight"]
    assert last.stored == "model.layers.4.block_sparse_moe.experts.3.w3.weight"
    assert new.stored[last.stored].name == last.stored
    assert len(new.pieces) == len(layout.pieces) // 2 * 5
    fewer = moe.adapt(layout, Changes(layers=1))
    assert len(fewer.pieces) == len(layout.pieces) // 2
    with pytest.raises(UsageError, match="first_k_dense_replace"):
        moe.adapt(moe.layout(mixture("deepseek_v3")[1]), Changes(layers=5))
