"""Damaged and hostile mixtures: refused in at most three lines, before any work."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from mtk.errors import CheckpointError
from mtk_adapters_moe import moe, structure

CONFIG = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 1}
B = "model.layers.0.block_sparse_moe"
M = "model.layers.0.mlp.experts"


def separate(experts=2) -> dict:
    tensors = {f"{B}.gate.weight": torch.ones(experts, 4)}
    for e in range(experts):
        for part, shape in (("w1", (6, 4)), ("w3", (6, 4)), ("w2", (4, 6))):
            tensors[f"{B}.experts.{e}.{part}.weight"] = torch.ones(shape)
    return tensors


def fused(both=(2, 12, 4), down=(2, 4, 6)) -> dict:
    return {
        f"{M}.gate_up_proj": torch.ones(both),
        f"{M}.down_proj": torch.ones(down),
    }


def write(folder, tensors, config=CONFIG):
    (folder / "config.json").write_text(
        config if isinstance(config, str) else json.dumps(config)
    )
    save_file(tensors, folder / "model.safetensors")
    return folder


def refused(folder, match):
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=match) as caught:
        structure(folder)
    assert len(str(caught.value).splitlines()) <= 3
    assert time.perf_counter() - start < 5


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_the_good_ones_open(tmp_path):
    assert moe.matches(write(tmp_path, separate()))
    structure(tmp_path)
    assert moe.matches(write(tmp_path, fused()))
    structure(tmp_path)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"num_local_experts": 10**12}, "1000000000000 experts"),
        ({"num_local_experts": 100_000}, "says 100000"),
        ({"num_local_experts": 3}, "says 3"),
        ({"num_local_experts": 1}, "says 1"),
        ({"num_local_experts": 0}, "known layout"),
        ({"num_local_experts": -2}, "known layout"),
        ({"num_local_experts": True}, "known layout"),
        ({"num_local_experts": "2"}, "known layout"),
        ({"num_local_experts": [2]}, "known layout"),
        ({"num_local_experts": 2.0}, "known layout"),
        ({"num_experts_per_tok": 3}, "gives 3 experts per token"),
        ({"num_experts_per_tok": None}, "gives None experts per token"),
    ],
)
@pytest.mark.parametrize("tensors", [separate(), fused()], ids=["separate", "fused"])
def test_configurations(tmp_path, tensors, config, match):
    if "says" in match and "model.layers.0.mlp.experts.down_proj" in tensors:
        match = "configur"
    refused(write(tmp_path, tensors, CONFIG | config), match)


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "JSON"), ("[]", "object"), ("[" * 100_000, "JSON"), ("\x00", "JSON")],
)
def test_configuration_files(tmp_path, text, match):
    folder = write(tmp_path, separate(), text)
    assert not moe.matches(folder)
    refused(folder, match)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (without(separate(), f"{B}.experts.1.w2.weight"), "expert 1 .* 2 tensors"),
        (without(separate(3), *[f"{B}.experts.1.{w}.weight" for w in ("w1", "w2", "w3")]),
         "numbered 0 to 2"),
        (separate() | {f"{B}.experts.1.w1.weight": torch.ones(5, 4)}, r"\(5, 4\)"),
        (separate() | {f"{B}.experts.1.w1.weight": torch.ones(4, 6)}, r"\(4, 6\)"),
        (separate() | {f"{B}.experts.{e}.w2.weight": torch.ones(4, 5) for e in (0, 1)},
         "fit together"),
        (separate() | {f"{B}.experts.{e}.w3.weight": torch.ones(24) for e in (0, 1)},
         "fit together"),
        (separate() | {f"{B}.experts.0.gate_proj.weight": torch.ones(6, 4)},
         "would both be called"),
        (separate() | {"model.layers.0.mlp.gate.weight": torch.ones(2, 4)},
         "would both be called"),
        (separate() | {f"{B}.experts.0.bias": torch.ones(2)}, "known layout|tensors"),
        (fused(both=(2, 11, 4)), "fit together"),
        (fused(both=(3, 12, 4)), "fit together"),
        (fused(both=(24, 4)), "fit together"),
        (fused(down=(2, 4, 5)), "fit together"),
        (fused(down=(2, 4, 6, 1)), "fit together"),
        (fused() | {f"{M}.down_proj_bias": torch.ones(4)}, r"\(4,\)"),
        (fused() | {f"{M}.down_proj_bias": torch.ones(3, 4)}, r"\(3, 4\)"),
        (separate() | fused(), "known layout"),
        ({f"{M}.gate_up_proj": torch.ones(2, 12, 4)}, "known layout"),
        ({f"{B}.gate.weight": torch.ones(2, 4)}, "known layout"),
    ],
)  # fmt: skip
def test_tensors(tmp_path, tensors, match):
    refused(write(tmp_path, tensors), match)


def test_empty_tensors_of_huge_shape(tmp_path):
    """Safetensors accepts them; counting to their first dimension would take for ever."""
    name, header = f"{M}.gate_up_proj", {}
    for key, shape in ((name, [10**12, 0, 0]), (f"{M}.down_proj", [10**12, 0, 0])):
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    write(tmp_path, separate(), CONFIG | {"num_local_experts": 10**12})
    data = len(text).to_bytes(8, "little") + text
    (tmp_path / "model.safetensors").write_bytes(data)
    refused(tmp_path, "experts")


def test_indexes_stay_in_their_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder, separate())
    canary = tmp_path / "secret.safetensors"
    (folder / "model.safetensors").rename(canary)
    index = folder / "model.safetensors.index.json"
    for place in ("../secret.safetensors", str(canary)):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(separate(), place)}))
        assert not moe.matches(folder)
        refused(folder, "not a file beside it")
    index.write_text(json.dumps({"weight_map": {"a": 3}}))
    refused(folder, "not a file beside it")
    index.write_text(json.dumps({"weight_map": []}))
    refused(folder, "not an index")
    write(folder, separate())
    names = dict.fromkeys([*separate(), "more"], "model.safetensors")
    index.write_text(json.dumps({"weight_map": names}))
    refused(folder, "disagree about 'more'")


def test_pipes_and_damaged_files(tmp_path):
    write(tmp_path, separate())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    refused(tmp_path, "safetensors")
    weights.unlink()
    os.mkfifo(weights)
    assert not moe.matches(tmp_path)
    refused(tmp_path, "has neither")
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    assert not moe.matches(tmp_path)
    refused(tmp_path, "not a model folder")
