"""Damaged, hostile and unsupported adapters: refused in at most three lines."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from mtk.checkpoint import StateDict
from mtk.errors import CheckpointError
from mtk_adapters_lora import lora
from mtk_adapters_lora.formats import load_adapter

if TYPE_CHECKING:
    from pathlib import Path

BASE = StateDict({"q.weight": torch.ones(8, 6), "p.weight": torch.ones(8, 6)}, "base")
A, B = torch.ones(2, 6), torch.ones(8, 2)
GOOD = {"q.lora_A.weight": A, "q.lora_B.weight": B}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def write(folder: Path, tensors: dict, config: object) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {f"base_model.model.{k}": v.clone() for k, v in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text)
    return folder


def read_all(path: Path) -> None:
    opened = lora.open(path, base=BASE)
    for name in opened.names():
        opened.read(name)


def refused(path: Path, match: str = ".") -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_all(path)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"q.lora_A.weight": A}, "both A and B"),
        ({"q.lora_B.weight": B}, "both A and B"),
        ({"q.lora_A.weight": A, "q.lora_embedding_B": B}, "both A and B"),
        ({"q.lora_A.weight": A[:0], "q.lora_B.weight": B[:, :0]}, "rank of at least 1"),
        ({"q.lora_A.weight": A, "q.lora_B.weight": torch.ones(8, 3)}, "multiply"),
        ({"q.lora_A.weight": A[0], "q.lora_B.weight": B}, "multiply"),
        ({"q.lora_A.weight": A[:1], "q.lora_B.weight": B[:, :1]}, "rank 1"),
        ({"q.lora_A.weight": A[:, :5], "q.lora_B.weight": B}, r"\(8, 5\)"),
        ({"q.lora_A.weight": A.int(), "q.lora_B.weight": B}, "floating"),
        ({"q.lora_A.weight": A * float("nan"), "q.lora_B.weight": B}, "NaN"),
        ({"q.lora_A.weight": A, "q.lora_B.weight": B / 0}, "NaN or inf"),
        ({"../q.lora_A.weight": A, "../q.lora_B.weight": B}, "tensor name"),
        ({"q\x1b[2J.lora_A.weight": A, "q\x1b[2J.lora_B.weight": B}, "tensor name"),
        (GOOD | {"q.lora_magnitude_vector": torch.ones(8)}, "DoRA"),
        (GOOD | {"head.weight": torch.ones(3)}, "no counterpart"),
        (GOOD | {"p.weight": torch.ones(3)}, r"\(3,\)"),
        (GOOD | {"q.weight": torch.ones(8, 6)}, "as well"),
        (GOOD | {"q.lora_B.bias": torch.ones(8)}, "no counterpart"),
        (GOOD | {"q.lora_down.weight": A}, "two tensors"),
        (
            GOOD
            | {
                "p.weight": torch.ones(8, 6),
                "p.modules_to_save.weight": torch.zeros(8, 6),
            },
            "both replace",
        ),
        (GOOD | {"p.hada_w1_a": A}, "LoHa"),
        (GOOD | {"p.lokr_w1": A}, "LoKr"),
        (GOOD | {"p.oft_diag": A}, "OFT"),
        (GOOD | {"p.lora_E": A}, "variant"),
        (GOOD | {"q.lora_mid.weight": A}, "variant"),
        ({"p.weight": torch.ones(8, 6)}, "no LoRA factors"),
        ({"q.lora_A.weight": torch.ones(2, 6, 3, 3), "q.lora_B.weight": B}, "multiply"),
        (
            {
                "q.lora_A.weight": torch.ones(2, 6, 3, 3),
                "q.lora_B.weight": torch.ones(8, 2, 3, 3),
            },
            "multiply",
        ),
    ],
)
def test_tensors(tmp_path: Path, tensors: dict, match: str) -> None:
    refused(write(tmp_path / "x", tensors, CONFIG), match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"r": 0}, "rank of at least 1"),
        ({"r": -3}, "rank of at least 1"),
        ({"r": 2.5}, "rank of at least 1"),
        ({"r": True}, "rank of at least 1"),
        ({"r": "2"}, "rank of at least 1"),
        ({"r": 3}, "rank 2"),
        ({"lora_alpha": float("nan")}, "finite"),
        ({"lora_alpha": float("inf")}, "finite"),
        ({"lora_alpha": [4]}, "finite"),
        ({"rank_pattern": [1]}, "table"),
        ({"rank_pattern": {"q": 0}}, "rank of at least 1"),
        ({"alpha_pattern": {"q": None}}, "finite"),
        ({"alpha_pattern": {"(": 1}}, "not a pattern"),
        ({"use_rslora": "yes"}, "true or false"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token"),
        ({"use_qalora": True}, "use_qalora"),
        ({"some_new_variant": {"x": 1}}, "some_new_variant"),
        ({"use_dora": True}, "DoRA"),
    ],
)
def test_configurations(tmp_path: Path, change: dict, match: str) -> None:
    refused(write(tmp_path / "x", GOOD, CONFIG | change), match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ("[" * 100_000, "JSON"),
        ('{"r": 2, "r": 4}', "twice"),
        ('{"x": "' + "a" * 10_000_001 + '"}', "larger"),
        ("\x00\xff", "JSON"),
    ],
)
def test_configuration_files(tmp_path: Path, text: str, match: str) -> None:
    refused(write(tmp_path / "x", GOOD, text), match)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", ".*.*.*.*.*x", "(?=a)b", "a{1,9}{1,9}", "(q)\\1"]
)
def test_patterns_that_could_take_for_ever_are_refused(
    tmp_path: Path, pattern: str
) -> None:
    start = time.perf_counter()
    name = "a" * 60
    tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    config = CONFIG | {"rank_pattern": {pattern: 2}}
    refused(write(tmp_path / "x", tensors, config), "too complex")
    assert time.perf_counter() - start < 2


def test_nothing_named_in_a_configuration_is_opened(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    os.mkfifo(trap)
    config = CONFIG | {
        "base_model_name_or_path": str(trap),
        "revision": "../../evil",
        "auto_mapping": {"base_model_class": "X", "parent_library": "os"},
        "megatron_core": "antigravity",
    }
    opened = lora.open(write(tmp_path / "x", GOOD, config), base=BASE)
    assert opened.changed() == ["q.weight"]


def test_pickles_pipes_and_damaged_files(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    assert lora.matches(folder)
    refused(folder, "Pickle")
    os.mkfifo(folder / "adapter_model.safetensors")
    refused(folder, "Pickle")
    path = write(tmp_path / "cut", GOOD, CONFIG) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    refused(path.parent, "safetensors")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(b"\xff" * 20)
    assert not lora.matches(alone)


def test_single_files(tmp_path: Path) -> None:
    def file(tensors: dict, metadata: str | None = None) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        text = None if metadata is None else {"lora_adapter_metadata": metadata}
        save_file({k: v.clone() for k, v in tensors.items()}, path, text)
        return path

    kohya = {"lora_unet_q.lora_down.weight": A, "lora_unet_q.lora_up.weight": B}
    lora.open(file(kohya), base=BASE)
    refused(file(kohya | {"lora_unet_q.alpha": torch.zeros(())}), "no scale")
    refused(file(kohya | {"lora_unet_q.alpha": torch.tensor(torch.nan)}), "no scale")
    refused(file(kohya | {"lora_unet_q.alpha": torch.ones(3)}), "single number")
    refused(file(kohya | {"lora_unet_q.dora_scale": torch.ones(8)}), "variant")
    refused(file(kohya | {"lora_unet_q.diff_b": torch.ones(8)}), "variant")
    refused(file(GOOD | {"norm.weight": A}), "no part")
    refused(file({f"base_model.model.{k}": v for k, v in GOOD.items()}), "without its")
    refused(file(GOOD, '{"r": 2}'), "missing")
    refused(file(GOOD, "[" * 10_000), "JSON")
    refused(file(GOOD, '{"q.r": 3, "q.lora_alpha": 2}'), "rank 2")
    both = GOOD | {"q.alpha": torch.tensor(2.0)}
    refused(file(both, '{"r": 2, "lora_alpha": 2}'), "both give")


@pytest.mark.parametrize("key", ["hada_w1_a", "lokr_w1", "lokr_w2_a", "oft_blocks"])
def test_files_of_other_kinds_are_not_taken_for_models(
    tmp_path: Path, key: str
) -> None:
    file = tmp_path / "x.safetensors"
    save_file({f"lora_unet_q.{key}": torch.ones(8, 6)}, file)
    assert lora.matches(file)
    refused(file, "variant")


def test_one_weight_is_changed_once(tmp_path: Path) -> None:
    tensors = GOOD | {"base_layer.q.lora_A.weight": A, "base_layer.q.lora_B.weight": B}
    refused(write(tmp_path / "x", tensors, CONFIG))
    whole = StateDict({"q.weight": torch.ones(8, 6, dtype=torch.int32)}, "base")
    with pytest.raises(CheckpointError, match="int32"):
        lora.open(write(tmp_path / "y", GOOD, CONFIG), base=whole)
    dora = GOOD | {"q.lora_magnitude_vector": torch.ones(3)}
    refused(write(tmp_path / "z", dora, CONFIG | {"use_dora": True}), "3 magnitudes")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "a", GOOD, CONFIG)
    (folder / name).rename(folder / "inside")
    (folder / name).symlink_to("inside")
    read_all(folder)
    (folder / "inside").rename(tmp_path / "outside")
    (folder / name).unlink()
    (folder / name).symlink_to("../outside")
    refused(folder, "link to a file outside")


def test_configs_are_bounded_in_size_and_depth(tmp_path: Path) -> None:
    for depth in (150, 600, 100_000):
        deep = '{"a":' * depth + "1" + "}" * depth
        text = f'{{"r": 2, "lora_alpha": 4, "loftq_config": {deep}}}'
        refused(write(tmp_path / "a", GOOD, text), r"adapter_config\.json.*(nest|JSON)")
    write(tmp_path / "a", GOOD, json.dumps(CONFIG) + " " * 10_000_000)
    refused(tmp_path / "a", "larger than 10,000,000 bytes")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["config.json", "model.safetensors"], "whole model, no LoRA adapter"),
        (["adapter_config.json"], "no adapter_model.safetensors there"),
        (["adapter_config.json", "adapter_model.bin"], "Pickle files are not read"),
        (["README.md"], "no adapter_config.json and no pytorch_lora_weights"),
    ],
)
def test_a_folder_without_an_adapter_says_what_it_is(
    tmp_path: Path, files: list[str], words: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=words):
        load_adapter(tmp_path)
