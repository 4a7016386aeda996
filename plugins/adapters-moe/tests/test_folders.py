"""Folders of mixtures from strangers: what stands beside the weights, and what runs."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtk
from mtk.errors import CheckpointError, UsageError
from mtk_adapters_moe import moe

if TYPE_CHECKING:
    from pathlib import Path

SECRET = '{"secret": "of another folder"}'


def mean(*, experts):
    return sum(experts) / len(experts)


MEAN = mtk.Method(name="mean_of_tests", target=mean, summary="-")


@pytest.fixture
def folder(mixture, tmp_path: Path) -> Path:
    """A Mixtral that a test may spoil."""
    shutil.copytree(mixture("mixtral")[1], tmp_path / "model")
    return tmp_path / "model"


def merged(folder: Path, **options) -> Path:
    out = folder.parent / "merged"
    mtk.merge(MEAN, experts=[folder, folder], output=out, **options)
    return out


def edit(folder: Path, **more) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **more}))


def refused(folder: Path, match: str, *, by=None, **options) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        (by or merged)(folder, **options)
    assert len(str(caught.value).splitlines()) <= 3
    assert not (folder.parent / "merged").exists()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_links_out_of_the_folder_are_not_carried(folder: Path, name: str) -> None:
    outside = folder.parent / "outside.json"
    outside.write_text(SECRET)
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    assert name not in moe.layout(folder).files
    out = merged(folder)
    assert not (out / name).exists()
    assert all(b"secret" not in file.read_bytes() for file in out.iterdir())
    if name == "tokenizer.json":
        assert moe.vocabulary(folder) is None


def test_a_config_that_is_a_link_out_of_the_folder_is_none(folder: Path) -> None:
    config = folder / "config.json"
    config.rename(folder.parent / "outside.json")
    config.symlink_to("../outside.json")
    assert not moe.matches(folder)
    for function in (moe.open, moe.layout, moe.build):
        refused(folder, "not a model folder", by=function)


def test_weights_that_are_links_out_of_the_folder(folder: Path) -> None:
    weights, outside = folder / "model.safetensors", folder.parent / "evil"
    names = list(load_file(weights))
    weights.rename(outside)
    weights.symlink_to("../evil")
    assert not moe.matches(folder)
    for function in (moe.open, moe.layout, moe.build):
        refused(folder, "link to a file outside", by=function)
    shard = "model-00001-of-00001.safetensors"
    weights.rename(folder / shard)
    index = {"weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "link to a file outside", by=moe.open)


def test_links_of_the_hub_s_cache_are_followed(folder: Path) -> None:
    repository = folder.parent / "models--a--b"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    assert moe.matches(snapshot)
    assert {"config.json", "tokenizer.json"} <= set(moe.layout(snapshot).files)
    assert moe.vocabulary(snapshot).rows == 48


def test_pickles_pipes_and_code_are_no_companions(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"\x80\x04\x95")
    (folder / "spiece.model").write_bytes(b"PK\x03\x04")
    os.mkfifo(folder / "vocab.json")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "LICENSE").write_text("mine")
    with (folder / "tokenizer.json").open() as file:
        assert json.load(file)
    files = {file.name for file in merged(folder).iterdir()}
    assert not files & {"tokenizer.model", "spiece.model", "vocab.json", "modeling.py"}
    assert {"LICENSE", "tokenizer.json", "config.json"} <= files
    (note,) = moe.notes(folder)
    assert "modeling.py" in note


def test_companions_of_gigabytes_are_refused(folder: Path) -> None:
    with (folder / "chat_template.jinja").open("wb") as file:
        file.truncate(3 << 30)
    refused(folder, "chat_template.jinja has 3072 MiB")


def test_keys_that_name_code_are_not_carried(folder: Path) -> None:
    foreign = {
        "auto_map": {"AutoModel": "modeling.Mine"},
        "attn_implementation": "someone/kernel",
        "_experts_implementation": {"": "someone/kernel"},
    }
    edit(folder, **foreign, text_settings={**foreign, "a": [foreign]}, b=1)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization.Mine", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for options in ({}, {"dtype": "bfloat16"}):
        out = merged(folder, **options)
        config = json.loads((out / "config.json").read_text())
        assert not set(config) & set(foreign)
        assert config["text_settings"] == {"a": [{}]}
        assert config["b"] == 1
        text = (out / "tokenizer_config.json").read_text()
        assert "Mine" not in text
        shutil.rmtree(out)
    assert len(moe.notes(folder)) == 2
    assert moe.build(folder) is not None  # with the attention of transformers itself


@pytest.mark.parametrize("depth", [150, 600, 100_000])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "generation_config.json"]
)
def test_deep_nesting(folder: Path, name: str, depth: int) -> None:
    text = (folder / name).read_text().rstrip().removesuffix("}")
    deep = '{"a":' * depth + "1" + "}" * depth
    (folder / name).write_text(f'{text}, "deep": {deep}}}')
    functions = {
        "config.json": (moe.open, moe.layout, moe.build),
        "tokenizer.json": (moe.vocabulary,),
        "generation_config.json": (moe.layout,),
    }
    for function in functions[name]:
        refused(folder, f"{name}.* (nested|JSON)", by=function)
    assert moe.matches(folder) == (name != "config.json")
    if name != "config.json":
        refused(folder, f"{name}.* (nested|JSON)")


@pytest.mark.parametrize(
    "content",
    ['{"model": {"vocab": "text"}}', '{"model": {"vocab": ["ab", "cd"]}}', "[]",
     '{"model": {"vocab": {"a": -1}}}', '{"model": {"vocab": {"a": true}}}'],
)  # fmt: skip
def test_what_is_no_tokenizer_is_refused_by_name(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    refused(folder, r"tokenizer\.json.*not a tokenizer", by=moe.vocabulary)


def test_an_index_beside_one_file_of_all_weights_is_stale(folder: Path) -> None:
    """The library would take the one file; what was looked at must be what runs."""
    shard = "model-00001-of-00001.safetensors"
    state = load_file(folder / "model.safetensors")
    save_file({name: t + 1 for name, t in state.items()}, folder / shard)
    index = {"weight_map": dict.fromkeys(state, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for function in (moe.open, moe.build):
        refused(folder, "stale", by=function)


def test_what_runs_is_what_was_read(folder: Path, mixture, run, ids) -> None:
    """An adapter_config.json makes loaders open the model that it names."""
    redirect = {"peft_type": "LORA", "base_model_name_or_path": str(folder.parent)}
    (folder / "adapter_config.json").write_text(json.dumps(redirect))
    torch.testing.assert_close(
        run(moe.build(folder), ids), run(mixture("mixtral")[0], ids)
    )


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"architectures": None}, "no model class None"),
        ({"architectures": ["AutoModelForCausalLM"]}, "no model class 'AutoModelFor"),
        ({"architectures": ["nn"]}, "no model class 'nn'"),
        ({"architectures": [["x"]]}, "no model class"),
        ({"model_type": "mine"}, "no model_type 'mine'"),
        ({"model_type": ["mixtral"]}, "no model_type"),
        ({"vision": {"use_pretrained_backbone": True}}, "weights of another model"),
        ({"hidden_size": "big"}, "does not accept|could not load"),
        ({"num_hidden_layers": 3}, "lacks .* tensors"),
    ],
)
def test_models_that_cannot_be_run(folder: Path, more: dict, match: str) -> None:
    edit(folder, **more)
    refused(folder, match, by=moe.build)


@pytest.mark.parametrize(
    "more",
    [{"layer_types": ["full_attention", "sliding_attention"]},
     {"mlp_only_layers": [1]}, {"decoder_sparse_step": 2},
     {"text_config": {"num_hidden_layers": 2}}, {"num_hidden_layers": None}],
)  # fmt: skip
def test_layers_that_are_not_alike_are_not_stacked(folder: Path, more: dict) -> None:
    edit(folder, **more)
    with pytest.raises(UsageError, match="cannot be stacked"):
        moe.adapt(moe.layout(folder), mtk.adapters.Changes(layers=2))
