"""Upcycling, against the dense models and against plain formulas."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mtk.checkpoint import StateDict
from mtk.errors import CheckpointError, ParameterError, UsageError
from mtk_adapters_moe import gates, moe, upcycle
from mtk_adapters_moe.parameters import GATES, PROMPTED

PROMPTS = [["abc de", "fgh"], ["x"], ["hello there you"], ["zz top"]]
FAMILIES = [
    ("Llama", "mixtral"),
    ("Mistral", "mixtral"),
    ("Llama", "qwen2_moe"),
    ("Mistral", "qwen2_moe"),
    ("Qwen2", "qwen2_moe"),
    ("Qwen3", "qwen3_moe"),
]


def make(donor, experts, out, **options):
    options.setdefault("prompts", PROMPTS[: len(experts)])
    return upcycle(donor, experts, out, **options)


@pytest.mark.parametrize(
    ("kind", "family", "gate"),
    [(*FAMILIES[i % len(FAMILIES)], gate) for i, gate in enumerate(GATES)]
    + [(*family, "hidden_gate") for family in FAMILIES[1:]],
)
def test_identical_experts_are_the_dense_model(
    dense, tmp_path, load, run, ids, kind, family, gate
):
    model, folder = dense(kind)
    out = tmp_path / "moe"
    result = make(folder, [folder] * 4, out, family=family, gate=gate)
    assert (result.path, result.family) == (out, family)
    torch.testing.assert_close(run(load(out), ids), run(model, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
        ("Llama", {"rms_norm_eps": 0.1, "hidden_act": "gelu"}),
        ("Llama", {"tie_word_embeddings": True, "head_dim": 4}),
        (
            "Llama",
            {
                "rope_parameters": {
                    "rope_type": "linear", "rope_theta": 500.0, "factor": 3.0
                }
            },
        ),
        ("Qwen3", {"head_dim": 4, "attention_bias": True, "tie_word_embeddings": True}),
    ],
)  # fmt: skip
def test_every_field_of_the_configuration_counts(
    dense, tmp_path, load, run, ids, kind, fields
):
    model, folder = dense(kind, **fields)
    make(folder, [folder] * 2, tmp_path / "moe")
    torch.testing.assert_close(
        run(load(tmp_path / "moe"), ids), run(model, ids), atol=1e-5, rtol=0
    )


def test_absent_fields_have_the_defaults_of_the_donors_class(
    dense, tmp_path, load, run, ids
):
    """Old files leave out what is default: RoPE base 1e4 for Mistral, not Mixtral's 1e6."""
    folder = tmp_path / "old"
    shutil.copytree(dense("Mistral")[1], folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "rms_norm_eps", "head_dim", "attention_dropout"):
        config.pop(key)
    (folder / "config.json").write_text(json.dumps(config))
    model = transformers.MistralForCausalLM.from_pretrained(folder).eval()
    make(folder, [folder] * 2, tmp_path / "moe")
    torch.testing.assert_close(
        run(load(tmp_path / "moe"), ids), run(model, ids), atol=1e-5, rtol=0
    )
    written = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert written["rope_parameters"]["rope_theta"] == written["rope_theta"] == 1e4
    assert written["rms_norm_eps"] == 1e-6


def mlp(state, layer, h):
    gate, up, down = (
        state[f"model.layers.{layer}.mlp.{p}_proj.weight"]
        for p in ("gate", "up", "down")
    )
    return (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "family"), [("Llama", "mixtral"), ("Qwen2", "qwen2_moe"), ("Qwen3", None)]
)
def test_a_block_is_the_weighted_sum_of_its_experts(
    dense, tmp_path, load, kind, family, k
):
    """p = softmax(G h), the top k of it renormalised, sum of p_e MLP_e(h)."""
    models = [dense(kind, seed) for seed in range(4)]
    out = tmp_path / "moe"
    make(models[0][1], [f for _, f in models], out, family=family, top_k=k)
    built = load(out)
    h = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(0))
    for layer in (0, 1):
        block = built.model.layers[layer].mlp
        p = (h @ block.gate.weight.T).softmax(-1)
        top = p.topk(k, dim=-1)
        chosen = torch.zeros_like(p).scatter(-1, top.indices, top.values)
        chosen = chosen / chosen.sum(-1, keepdim=True)
        expected = sum(
            chosen[..., e, None] * mlp(model.state_dict(), layer, h)
            for e, (model, _) in enumerate(models)
        )
        with torch.no_grad():
            torch.testing.assert_close(block(h), expected, atol=1e-5, rtol=1e-4)
        for name, theirs in models[0][0].model.layers[layer].state_dict().items():
            if not name.startswith("mlp"):
                ours = built.model.layers[layer].state_dict()[name]
                assert torch.equal(ours, theirs), name


def routers(folder) -> torch.Tensor:
    """(layers, experts, d)."""
    stored = load_file(folder / "model.safetensors")
    names = sorted(n for n in stored if n.endswith(".gate.weight"))
    return torch.stack([stored[n] for n in names])


@pytest.mark.parametrize("gate", PROMPTED)
def test_rows_have_unit_length(dense, tmp_path, gate):
    folder = dense("Llama")[1]
    negative = [["q"], [], ["w", "ab"], []]
    make(folder, [folder] * 4, tmp_path / "moe", gate=gate, negative_prompts=negative)
    rows = routers(tmp_path / "moe")
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2, 4))


@pytest.mark.parametrize("gate", PROMPTED)
def test_swapping_experts_changes_nothing(dense, tmp_path, load, run, ids, gate):
    folders = [dense("Llama", seed)[1] for seed in range(3)]
    donor, order = folders[0], [2, 0, 1]
    one, two = tmp_path / "one", tmp_path / "two"
    make(donor, folders, one, gate=gate)
    upcycle(
        donor,
        [folders[i] for i in order],
        two,
        gate=gate,
        prompts=[PROMPTS[i] for i in order],
    )
    torch.testing.assert_close(routers(two), routers(one)[:, order])
    torch.testing.assert_close(run(load(one), ids), run(load(two), ids))


def reference_row(model, folder, gate, layer, texts):
    """One prompt at a time, without padding, from what transformers itself returns."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        ids = torch.tensor([[0, *tokenizer(text, add_special_tokens=False).input_ids]])
        if gate == "cheap_embed":
            found.append(model.model.embed_tokens.weight[ids[0]].sum(0))
            continue
        seen: list = []
        norm = model.model.layers[layer].post_attention_layernorm
        hook = norm.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o[0]))
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[layer][0]
        hook.remove()
        found.append(
            {
                "hidden": states[-1],
                "hidden_avg": states.mean(0),
                "hidden_gate": seen[0][-1],
            }[gate]
        )
    total = torch.stack(found).sum(0) if gate == "cheap_embed" else None
    return torch.stack(found).mean(0) if total is None else total / total.norm()


@pytest.mark.parametrize("gate", PROMPTED)
def test_rows_come_from_the_prompts(dense, tmp_path, gate):
    """Padded batches of the code, single prompts of the reference: padding is nothing."""
    model, folder = dense("Llama")
    many = [
        ["a", "bcdefg hij", "kl mnop qrst uvwxyz", *map(chr, range(97, 107))],
        ["q r"],
    ]
    negative = [["zzzz", "y"], []]
    upcycle(
        folder,
        [folder] * 2,
        tmp_path / "moe",
        gate=gate,
        prompts=many,
        negative_prompts=negative,
    )
    rows = routers(tmp_path / "moe")
    assert len(many[0]) > gates.BATCH
    for layer in (0, 1):
        for e in (0, 1):
            row = reference_row(model, folder, gate, layer, many[e])
            if negative[e]:
                row = row - reference_row(model, folder, gate, layer, negative[e])
            torch.testing.assert_close(
                rows[layer, e], row / row.norm(), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("gate", ["hidden", "hidden_avg", "hidden_gate"])
def test_a_prompt_gives_the_same_alone_and_among_others(dense, gate):
    model = dense("Llama")[0]
    encoded = [[0, 5, 6], [0, 7], [0, 8, 9, 10, 11, 12, 13]]
    batch = gates.states(model, gate, encoded)
    for number, prompt in enumerate(encoded):
        alone = gates.states(model, gate, [prompt])
        torch.testing.assert_close(batch[number], alone[0], atol=1e-5, rtol=0)


def test_random_rows(dense, tmp_path):
    folder = dense("Llama")[1]

    def rows(name, **options):
        upcycle(folder, [folder] * 4, tmp_path / name, **options)
        return routers(tmp_path / name)

    one = rows("1", gate="random")
    assert torch.equal(one, rows("2", gate="random"))
    assert not torch.equal(one, rows("3", gate="random", seed=1))
    assert not torch.equal(one[0], one[1])
    assert one.std() == pytest.approx(1.0, abs=0.2)
    uniform = rows("4", gate="uniform_random")
    assert float(uniform.abs().max()) <= 0.25
    assert float(uniform.abs().max()) > 0.2
    assert uniform.std() == pytest.approx(0.25 / 3**0.5, abs=0.03)


def test_noise_and_residual_scale(dense, tmp_path):
    folder = dense("Llama")[1]
    scales = {"noise_scale": [0.0, 0.01], "residual_scale": [1.0, 0.5]}
    make(folder, [folder] * 2, tmp_path / "1", **scales)
    make(folder, [folder] * 2, tmp_path / "2", **scales)
    make(folder, [folder] * 2, tmp_path / "3", **scales, seed=1)
    one, again, other = (load_file(tmp_path / n / "model.safetensors") for n in "123")
    dense_state = load_file(folder / "model.safetensors")
    block = "model.layers.0.block_sparse_moe.experts"
    for part, name in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
        weight = dense_state[f"model.layers.0.mlp.{name}_proj.weight"]
        assert torch.equal(one[f"{block}.0.{part}.weight"], weight)
        changed = one[f"{block}.1.{part}.weight"]
        noise = (changed * 2 if part == "w2" else changed) - weight
        assert noise.std() == pytest.approx(0.01, rel=0.15)
        assert torch.equal(changed, again[f"{block}.1.{part}.weight"])
        assert not torch.equal(changed, other[f"{block}.1.{part}.weight"])


def test_saving_again_gives_the_same_bytes(dense, tmp_path, load):
    models = [dense("Llama", seed)[1] for seed in range(2)]
    make(models[0], models, tmp_path / "moe")
    hashes = []
    for name in ("one", "two"):
        source = tmp_path / ("moe" if name == "one" else "one")
        load(source).save_pretrained(tmp_path / name)
        data = (tmp_path / name / "model.safetensors").read_bytes()
        hashes.append(hashlib.sha256(data).hexdigest())
    assert hashes[0] == hashes[1]
    ours, theirs = (
        load_file(tmp_path / n / "model.safetensors") for n in ("moe", "one")
    )
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_shared_expert(dense, tmp_path, load):
    """Without prompts its sigmoid is 1/2; with prompts its gate is their direction."""
    (model, folder), (other, theirs) = dense("Llama"), dense("Llama", 1)
    out = tmp_path / "moe"
    make(folder, [folder] * 2, out, shared_expert=theirs, shared_scale=0.3)
    built = load(out)
    h = torch.randn(1, 5, 16)
    with torch.no_grad():
        expected = mlp(model.state_dict(), 1, h)
        expected = expected + 0.5 * 0.3 * mlp(other.state_dict(), 1, h)
        torch.testing.assert_close(built.model.layers[1].mlp(h), expected)
    make(
        folder,
        [folder] * 2,
        out,
        shared_expert=theirs,
        shared_prompts=["ab"],
        gate="hidden",
        overwrite=True,
    )
    row = load(out).model.layers[1].mlp.shared_expert_gate.weight[0]
    wanted = reference_row(model, folder, "hidden", 1, ["ab"])
    torch.testing.assert_close(row.detach(), wanted / wanted.norm())
    with pytest.raises(UsageError, match="no shared expert"):
        make(
            folder,
            [folder] * 2,
            tmp_path / "no",
            shared_expert=theirs,
            family="mixtral",
        )


def test_experts_may_be_open_checkpoints(dense, tmp_path):
    folder = dense("Llama")[1]
    expert = StateDict(dense("Llama", 1)[0].state_dict(), "in memory")
    make(folder, [folder, expert], tmp_path / "moe")
    view = moe.open(tmp_path / "moe")
    name = "model.layers.1.mlp.experts.1.up_proj.weight"
    assert torch.equal(
        view.read(name), expert.read("model.layers.1.mlp.up_proj.weight")
    )


def test_dtype(dense, tmp_path, load):
    folder = dense("Llama")[1]
    result = make(folder, [folder] * 2, tmp_path / "moe", dtype="bfloat16")
    model = load(tmp_path / "moe")
    assert model.dtype == torch.bfloat16
    stored = load_file(tmp_path / "moe" / "model.safetensors")
    assert result.bytes == sum(t.numel() * 2 for t in stored.values())
    with pytest.raises(ParameterError, match="int8"):
        make(folder, [folder] * 2, tmp_path / "no", dtype="int8")


def test_warnings(dense, tmp_path):
    folder, larger = dense("Llama")[1], dense("Llama", 1, vocab_size=56)[1]
    same = [["abc"]] * 3
    result = upcycle(folder, [folder, folder, larger], tmp_path / "moe", prompts=same)
    text = " | ".join(result.warnings)
    assert "power of two" in text
    assert "expert 2 has another vocabulary" in text
    assert "degenerate" in text
    assert result.condition > 1e3
    manifest = json.loads((tmp_path / "moe" / "manifest.json").read_text())
    assert manifest["warnings"] == list(result.warnings)
    assert manifest["upcycle"]["prompts"] == same
    assert len(manifest["inputs"]) == 4
    quiet = make(folder, [folder] * 2, tmp_path / "quiet", gate="cheap_embed")
    assert quiet.warnings == ()
    window = dense("Mistral", sliding_window=8)[1]
    warned = make(window, [window] * 2, tmp_path / "window", gate="cheap_embed")
    assert "window of 8" in warned.warnings[0]


def test_the_folder_is_complete_and_never_half(dense, tmp_path, load):
    folder = dense("Llama")[1]
    out = tmp_path / "moe"
    make(folder, [folder] * 2, out)
    names = {file.name for file in out.iterdir()}
    assert {
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
    } <= names
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    with pytest.raises(UsageError, match="exists"):
        make(folder, [folder] * 2, out)
    with pytest.raises(UsageError, match="overlap"):
        make(folder, [folder] * 2, folder, overwrite=True)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN"):
        make(folder, [folder, broken], tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"moe", "broken"}


def refused(match, *arguments, **options):
    with pytest.raises(UsageError, match=match) as caught:
        upcycle(*arguments, **options)
    assert len(str(caught.value).splitlines()) <= 3


def test_refusals(dense, tmp_path):
    llama, out = dense("Llama")[1], tmp_path / "out"
    two = [llama, llama]
    refused("no such folder", llama, [llama, tmp_path / "gone"], out, gate="random")
    refused("top_k is 3", llama, two, out, gate="random", top_k=3)
    refused("must be", llama, two, out, gate="magic")
    refused("numbers for 2 experts", llama, two, out, noise_scale=[0.1])
    refused("expert 1 has none", llama, two, out, prompts=[["a"], []])
    refused("for each of 2", llama, two, out, prompts=[["a"]])
    refused("for each of 2", llama, two, out, prompts=["ab", "cd"])
    refused("cannot become", dense("Qwen3")[1], two, out, family="mixtral")
    refused("did you mean", llama, two, out, family="mixtrl")
    refused(
        "layers of MLPs", llama, [llama, dense("Llama", intermediate_size=32)[1]], out
    )
    refused(
        "layers of MLPs", llama, [llama, dense("Llama", num_hidden_layers=3)[1]], out
    )
    biased = dense("Llama", attention_bias=True)[1]
    refused("no place", biased, [biased, biased], out, family="mixtral")
    mlp_bias = dense("Llama", mlp_bias=True)[1]
    refused("no place", mlp_bias, [mlp_bias, mlp_bias], out)
    refused(
        "no direction", llama, two, out, prompts=[["a"], ["b"]],
        negative_prompts=[["a"], []],
    )  # fmt: skip
    refused(
        "shared_prompts need",
        llama,
        two,
        out,
        prompts=PROMPTS[:2],
        shared_prompts=["a"],
    )
    assert not out.exists()


def test_a_donor_without_its_tokenizer(dense, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(dense("Llama")[1], bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    refused("tokenizer", bare, [bare, bare], tmp_path / "out", prompts=[["a"], ["b"]])
    upcycle(bare, [bare, bare], tmp_path / "out", gate="random")


def test_a_mixture_is_no_dense_model(mixture, tmp_path):
    folder = mixture("mixtral")[1]
    refused("no dense model", folder, [folder], tmp_path / "o", gate="random", top_k=1)
