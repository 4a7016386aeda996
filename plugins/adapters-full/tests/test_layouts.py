"""What lies in a folder beside the weights: what is carried over, and what is not."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

import mtk
from mtk.errors import CheckpointError
from mtk.model_folders.reading import LARGEST
from mtk_adapters_full import full

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {"w.weight": torch.ones(2, 2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A transformers folder with everything that people upload."""
    place = tmp_path / "model"
    place.mkdir()
    save_file(TENSORS, place / "model.safetensors")
    (place / "config.json").write_text('{"model_type": "llama"}')
    return place


def test_companions_are_carried_and_nothing_else(folder: Path) -> None:
    wanted = (
        "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json",
        "added_tokens.json", "chat_template.jinja", "preprocessor_config.json",
        "LICENSE.txt", "NOTICE", "spiece.model", "processor_config.json",
    )  # fmt: skip
    strangers = (
        "modeling_llama.py", "pytorch_model.bin", "training_args.bin", "optimizer.pt",
        "README.md", ".git", "trainer_state.json", "events.out.tfevents", "other.model",
        "LICENSE.py", "consolidated.safetensors.txt",
    )  # fmt: skip
    for name in (*wanted, *strangers):
        (folder / name).write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("x")
    layout = full.layout(folder)
    assert (layout.family, dict(layout.weights)) == (
        "transformers",
        {"": "model.safetensors"},
    )
    names = {*wanted, "config.json", "additional_chat_templates/tools.jinja"}
    assert set(layout.files) == names
    assert all(path == folder / name for name, path in layout.files.items())


def test_pickles_and_pipes_with_names_of_companions_stay_behind(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"\x80\x04\x95")
    (folder / "spiece.model").write_bytes(b"PK\x03\x04")
    os.mkfifo(folder / "vocab.json")
    (folder / "merges.txt").mkdir()
    assert set(full.layout(folder).files) == {"config.json"}


def test_something_huge_is_no_tokenizer(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(CheckpointError, match="more than any tokenizer"):
        full.layout(folder)


def test_links_that_leave_the_folder_are_not_followed(tmp_path, folder) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": 1}')
    (folder / "tokenizer.json").symlink_to(secret)
    (folder / "vocab.json").symlink_to("absent")
    (folder / "merges.txt").symlink_to("merges.txt")
    (folder / "vocab.txt").symlink_to("config.json")
    assert set(full.layout(folder).files) == {"config.json", "vocab.txt"}
    outside = tmp_path / "other.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="link to a file outside") as refused:
        full.open(folder)
    assert len(str(refused.value).splitlines()) <= 3
    assert full.open(outside).names() == ["w.weight"]


def test_the_links_of_the_hub_s_cache_are_followed(tmp_path, folder) -> None:
    repository = tmp_path / "models--me--model"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (snapshot / "vae").mkdir()
    for i, file in enumerate(folder.iterdir()):
        file.rename(blobs / f"hash{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash{i}")
    assert full.open(snapshot).names() == ["w.weight"]
    assert full.layout(snapshot).family == "transformers"
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    (blobs / "link").symlink_to(tmp_path / "secret.json")
    (snapshot / "vocab.json").symlink_to("../../blobs/link")
    assert set(full.layout(snapshot).files) == {"config.json"}


def test_a_config_loses_the_keys_that_name_code(folder: Path) -> None:
    config = {
        "model_type": "llama",
        "auto_map": {"AutoModel": "modeling.Mine"},
        "text_config": {"auto_map": {}, "hidden_size": 4},
        "attn_implementation": "someone/kernel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"auto_map": {}, "é": 1}')
    (folder / "modeling.py").write_text("")
    files = full.layout(folder).files
    assert json.loads(files["config.json"]) == {
        "model_type": "llama",
        "text_config": {"hidden_size": 4},
    }
    assert json.loads(files["tokenizer_config.json"]) == {"é": 1}
    notes = full.notes(folder)
    assert len(notes) == 3
    assert "modeling.py" in notes[0]
    assert full.notes(folder / "model.safetensors") == ()


def test_the_same_weights_under_other_names_are_counted_once(folder: Path) -> None:
    save_file({"wq": torch.zeros(1)}, folder / "consolidated.safetensors")
    assert full.open(folder).names() == ["w.weight"]
    assert "consolidated" in full.notes(folder)[0]
    assert dict(full.layout(folder).weights) == {"": "model.safetensors"}
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    assert full.open(folder).names() == ["w.weight"]
    assert dict(full.layout(folder).weights) == {"": "model.safetensors"}
    (folder / "mine.safetensors").unlink()
    assert full.open(folder).names() == ["wq"]


def test_one_file_beside_shards_of_its_name_is_refused(folder: Path) -> None:
    shard = "model-00001-of-00001.safetensors"
    save_file(TENSORS, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w.weight": shard}}))
    with pytest.raises(CheckpointError, match="stale"):
        full.open(folder)
    (folder / "model.safetensors").unlink()
    assert full.open(folder).names() == ["w.weight"]
    assert dict(full.layout(folder).weights) == {"": "model.safetensors"}


def test_plain_folders_and_files_keep_their_names(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "mine.safetensors")
    for path in (tmp_path, tmp_path / "mine.safetensors"):
        layout = full.layout(path)
        assert (layout.family, dict(layout.weights)) == (
            "plain",
            {"": "mine.safetensors"},
        )


def test_sentence_transformers_folders_have_parts(
    folder: Path, average, tmp_path
) -> None:
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "2_Dense", "other"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    save_file({"linear.weight": torch.eye(2)}, folder / "2_Dense" / "model.safetensors")
    save_file({"x": torch.eye(2)}, folder / "other" / "model.safetensors")
    assert full.open(folder).names() == ["2_Dense/linear.weight", "w.weight"]
    layout = full.layout(folder)
    assert layout.family == "transformers"
    assert dict(layout.weights) == {
        "": "model.safetensors",
        "2_Dense": "2_Dense/model.safetensors",
    }
    assert {"modules.json", "1_Pooling/config.json"} <= set(layout.files)
    assert "other/config.json" not in layout.files
    target = tmp_path / "merged"
    mtk.merge(average, experts=[folder, folder], output=target)
    assert full.open(target).names() == full.open(folder).names()
    assert (target / "2_Dense" / "model.safetensors").is_file()


def test_an_open_clip_folder_is_merged_into_one(clip, average, tmp_path) -> None:
    import open_clip

    folder, model = clip
    other = tmp_path / "other"
    other.mkdir()
    (other / "open_clip_config.json").write_bytes(
        (folder / "open_clip_config.json").read_bytes()
    )
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_file(state, other / "open_clip_model.safetensors")
    target = tmp_path / "merged"
    mtk.merge(average, experts=[folder, other], output=target)
    loaded = open_clip.create_model(f"local-dir:{target}")
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name] + 0.5)
    roles = full.roles(folder)
    assert set(roles) == set(dict(model.named_parameters()))
    linear = {name for name, role in roles.items() if role == "linear"}
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in linear
    assert "visual.transformer.resblocks.0.mlp.c_fc.weight" in linear
    assert roles["visual.conv1.weight"] == "conv"
    assert roles["token_embedding.weight"] == "embedding"
    opened = full.open(folder)
    opened.settle()
    bias = opened.info("visual.transformer.resblocks.0.attn.in_proj_bias")
    assert (bias.role, bias.layer) == (
        "bias",
        "visual.transformer.resblocks.0.attn.in_proj_weight",
    )


def test_an_open_clip_config_that_names_another_model_is_refused(
    clip, tmp_path
) -> None:
    folder, _ = clip
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "stranger/model"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(TENSORS, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match="on the Hub"):
        full.build(tmp_path)
    assert full.roles(tmp_path) == {}


def test_a_folder_for_two_libraries_is_written_for_the_first(folder, clip) -> None:
    save_file(TENSORS, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text("{}")
    layout = full.layout(folder)
    assert layout.family == "transformers"
    assert set(layout.files) == {"config.json"}
    assert "open_clip_model.safetensors was left alone" in full.notes(folder)[0]


def test_a_deeply_nested_config_is_refused(folder: Path) -> None:
    for depth in (150, 600, 100_000):
        text = '{"a":' * depth + "1" + "}" * depth
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError) as refused:
            full.layout(folder)
        assert len(str(refused.value).splitlines()) <= 3
        assert full.roles(folder) == {}
