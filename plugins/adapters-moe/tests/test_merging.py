"""Mixtures of one base merged expert by expert, against merges by hand."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mtk
from mtk.errors import CheckpointError
from mtk.loading import Provided
from mtk.loading import load as load_plugins

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"]
BLOCKS = ("gate_proj", "up_proj", "down_proj")


def mean_delta(*, experts, base, scale):
    return base + scale * (sum(experts) / len(experts) - base)


def spread(*, experts, base):
    """Not element by element: it tells whole matrices of experts from parts of them."""
    delta = sum(experts) / len(experts) - base
    return base + delta / (1 + delta.norm())


BY_HAND = {
    "mean_delta": mtk.Method(
        name="mean_delta",
        target=mean_delta,
        summary="-",
        needs=mtk.Needs(base=True),
        params=(mtk.Param("scale", 0.5),),
    ),
    "spread": mtk.Method(
        name="spread",
        target=spread,
        summary="-",
        scope="tensor",
        needs=mtk.Needs(base=True),
    ),
}


def first(*, experts):
    return experts[0]


def registry_with_first():
    """What is installed, and a method that copies."""
    registry = load_plugins()
    copying = mtk.Method(name="passthrough_of_tests", target=first, summary="-")
    registry.methods.append(Provided(copying, registry.plugins[0]))
    return registry


def separate(model) -> dict:
    """Every expert of a running model by itself, under names of this test."""
    result = {}
    for name, tensor in model.state_dict().items():
        if tensor.dim() < 3:
            result[name] = tensor.clone()
        elif name.endswith("gate_up_proj"):
            for e, both in enumerate(tensor):
                result[f"{name}.{e}.g"], result[f"{name}.{e}.u"] = (
                    half.clone() for half in both.chunk(2)
                )
        else:
            result |= {f"{name}.{e}.d": one.clone() for e, one in enumerate(tensor)}
    return result


def together(model, tensors: dict) -> dict:
    """The way back, to a state that the running model takes."""
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.dim() < 3:
            state[name] = tensors[name]
        elif name.endswith("gate_up_proj"):
            state[name] = torch.stack(
                [
                    torch.cat([tensors[f"{name}.{e}.g"], tensors[f"{name}.{e}.u"]])
                    for e in range(len(tensor))
                ]
            )
        else:
            state[name] = torch.stack(
                [tensors[f"{name}.{e}.d"] for e in range(len(tensor))]
            )
    return state


def check(method, params, mixture, kind, tmp_path, load, run, ids) -> None:
    (base, b), (one, f1), (two, f2) = (mixture(kind, seed) for seed in (0, 1, 2))
    out = tmp_path / "merged"
    mtk.merge(method, base=b, experts=[f1, f2], params=params, output=out)
    merged = load(out)
    separately = mtk.merge(
        method,
        base=separate(base),
        experts=[separate(one), separate(two)],
        params=params,
    )
    by_hand = together(base, separately.tensors)
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, by_hand[name], atol=2e-6, rtol=1e-5)
    expected = {n: t.clone() for n, t in base.state_dict().items()}
    values = run(merged, ids)
    base.load_state_dict(by_hand)
    try:
        assert bool(values.isfinite().all())
        torch.testing.assert_close(values, run(base, ids), atol=1e-4, rtol=1e-4)
    finally:
        base.load_state_dict(expected)
    assert not torch.allclose(values, run(base, ids), atol=1e-3)
    names = (b / "model.safetensors", out / "model.safetensors")
    assert set(load_file(names[0])) == set(load_file(names[1]))


@pytest.mark.parametrize("method", list(BY_HAND))
@pytest.mark.parametrize("kind", MIXTURES)
def test_methods_of_our_own(mixture, kind, method, tmp_path, load, run, ids):
    check(BY_HAND[method], {}, mixture, kind, tmp_path, load, run, ids)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("task_arithmetic", {"scale": 0.4}),
        ("ties", {"density": 0.3}),
        ("average", {}),
        ("iso_c", {}),
    ],
)
@pytest.mark.parametrize("kind", MIXTURES)
def test_methods_of_the_toolkit(
    mixture, kind, method, params, tmp_path, load, run, ids
):
    pytest.importorskip("mtk_methods_weights")
    check(method, params, mixture, kind, tmp_path, load, run, ids)


@pytest.mark.parametrize("kind", ["gpt_oss", "granite"])
def test_fused_files_are_written_as_they_were(mixture, kind, tmp_path, load, run, ids):
    """Stored fused, merged expert by expert; element-wise, so the halves do not matter."""
    folders = [mixture(kind, seed)[1] for seed in (0, 1, 2)]
    out = tmp_path / "merged"
    method = BY_HAND["mean_delta"]
    mtk.merge(method, base=folders[0], experts=folders[1:], output=out)
    base, one, two, merged = (
        load_file(folder / "model.safetensors") for folder in (*folders, out)
    )
    assert set(merged) == set(base)
    assert any(tensor.dim() == 3 for tensor in merged.values())
    for name, tensor in merged.items():
        expected = base[name] + 0.5 * ((one[name] + two[name]) / 2 - base[name])
        torch.testing.assert_close(tensor, expected)
    assert bool(run(load(out), ids).isfinite().all())


def test_fused_and_separate_files_merge_with_each_other(mixture, tmp_path, load):
    """Files written by hand, with the names that models have in memory."""
    (base, b), (one, f1) = mixture("mixtral"), mixture("mixtral", 1)
    fused = tmp_path / "fused"
    fused.mkdir()
    shutil.copy(f1 / "config.json", fused)
    state = {name: t.clone() for name, t in one.state_dict().items()}
    save_file(state, fused / "model.safetensors", {"format": "pt"})
    method, out = BY_HAND["mean_delta"], tmp_path / "merged"
    mtk.merge(method, base=b, experts=[fused], params={"scale": 1.0}, output=out)
    for name, tensor in load(out).state_dict().items():
        torch.testing.assert_close(tensor, state[name], atol=1e-6, rtol=1e-6)
    back = tmp_path / "back"  # now the fused file gives the layout
    mtk.merge(method, base=fused, experts=[b], params={"scale": 1.0}, output=back)
    stored = load_file(back / "model.safetensors")
    assert set(stored) == set(state)
    for name, tensor in base.state_dict().items():
        torch.testing.assert_close(stored[name], tensor, atol=1e-6, rtol=1e-6)


def test_dtype_and_shards(mixture, tmp_path, load, run, ids):
    folders = [mixture("mixtral", seed)[1] for seed in (0, 1, 2)]
    out = tmp_path / "merged"
    mtk.merge(
        BY_HAND["mean_delta"],
        base=folders[0],
        experts=folders[1:],
        dtype="bfloat16",
        shard_size=8000,
        output=out,
    )
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert len(list(out.glob("*.safetensors"))) > 2
    assert (out / "model.safetensors.index.json").is_file()
    assert (out / "tokenizer.json").is_file()
    model = load(out)
    assert model.dtype == torch.bfloat16
    assert bool(run(model, ids).isfinite().all())


def test_only_one_projection(mixture, tmp_path):
    folders = [mixture("mixtral", seed)[1] for seed in (0, 1, 2)]
    only = ["*.experts.*.up_proj.weight"]
    out = tmp_path / "merged"
    mtk.merge(
        BY_HAND["mean_delta"],
        base=folders[0],
        experts=folders[1:],
        only=only,
        output=out,
    )
    base, merged = (load_file(f / "model.safetensors") for f in (folders[0], out))
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if name.endswith(".w3.weight")}


def test_unlike_vocabularies_are_united(mixture, tmp_path, load, run, ids):
    """The second model has two tokens more, which the result keeps as it learnt them."""
    one, two = mixture("mixtral")[1], mixture("mixtral", 1)[1]
    larger = tmp_path / "larger"
    shutil.copytree(two, larger)
    state = load_file(two / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.full((2, 16), 0.25)])
    save_file(state, larger / "model.safetensors", {"format": "pt"})
    config = json.loads((two / "config.json").read_text()) | {"vocab_size": 50}
    (larger / "config.json").write_text(json.dumps(config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(two)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(larger)
    method, out = BY_HAND["mean_delta"], tmp_path / "merged"
    with pytest.raises(CheckpointError):
        mtk.merge(method, base=one, experts=[two, larger], output=out)
    mtk.merge(method, base=one, experts=[two, larger], vocabulary="union", output=out)
    merged = load(out)
    assert merged.config.vocab_size == 50
    assert merged.lm_head.weight.shape == (50, 16)
    found = transformers.AutoTokenizer.from_pretrained(out)
    assert found("a<two>").input_ids == [2, 49]
    torch.testing.assert_close(
        merged.lm_head.weight[48:].detach(), torch.full((2, 16), 0.25)
    )


def test_layers_can_be_stacked(mixture, tmp_path, load, run, ids):
    from mtk.recipes import Recipe, Slab, Source

    folder = str(mixture("mixtral")[1])
    slabs = tuple(
        Slab(sources=((Source(path=folder), start, end),))
        for start, end in ((0, 2), (1, 2), (0, 1))
    )
    out = tmp_path / "stacked"
    mtk.merge(
        Recipe(method="passthrough_of_tests", slabs=slabs),
        output=out,
        registry=registry_with_first(),
    )
    stacked, whole = load(out), mixture("mixtral")[0]
    assert len(stacked.model.layers) == 4
    for new, old in enumerate((0, 1, 1, 0)):
        theirs = whole.model.layers[old].state_dict()
        for name, tensor in stacked.model.layers[new].state_dict().items():
            assert torch.equal(tensor, theirs[name]), name
