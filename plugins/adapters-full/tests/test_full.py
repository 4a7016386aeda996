from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from mtk.errors import CheckpointError
from mtk.live import linear_layers
from mtk_adapters_full import full
from mtk_adapters_full.plugin import mtk_adapters

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {f"t{i}": torch.full((2,), float(i)) for i in range(4)}


def test_the_declaration_names_what_it_opens() -> None:
    (adapter,) = mtk_adapters()
    assert adapter.kind == "full"
    assert adapter.formats


def sharded(folder: Path, **changes: str) -> Path:
    save_file({k: TENSORS[k] for k in ("t0", "t1")}, folder / "a.safetensors")
    save_file({k: TENSORS[k] for k in ("t2", "t3")}, folder / "b.safetensors")
    table = dict.fromkeys(("t0", "t1"), "a.safetensors") | dict.fromkeys(
        ("t2", "t3"), "b.safetensors"
    )
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table | changes}))
    return folder


def test_a_file_a_folder_and_shards_open_alike(tmp_path: Path) -> None:
    folder = tmp_path / "single"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in (folder, folder / "model.safetensors", sharded(shards)):
        assert full.matches(path)
        opened = full.open(path)
        assert opened.names() == sorted(TENSORS)
        assert all(torch.equal(opened.read(name), TENSORS[name]) for name in TENSORS)
        assert opened.info("t0").shape == (2,)


def test_nothing_but_safetensors_matches(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    assert not full.matches(tmp_path)
    assert not full.matches(tmp_path / "model.bin")
    assert not full.matches(tmp_path / "absent")


def test_a_folder_with_several_files_and_no_index_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="2 safetensors files"):
        full.open(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"t0": "../a.safetensors"},
        {"t0": "/etc/passwd"},
        {"t0": "absent.safetensors"},
        {"t9": "a.safetensors"},
    ],
)
def test_an_index_that_points_elsewhere_or_lies_is_refused(tmp_path, changes) -> None:
    with pytest.raises(CheckpointError, match="index"):
        full.open(sharded(tmp_path, **changes))


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    for text in ("", "[]", '{"weight_map": 3}', "[" * 100_000):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match="index"):
            full.open(tmp_path)


def test_an_open_clip_folder_is_opened_and_built_quietly(clip, caplog) -> None:
    folder, model = clip
    built = full.build(folder)
    assert not caplog.records
    assert full.open(folder).names() == sorted(model.state_dict())
    images = torch.randn(3, 3, 16, 16)
    text = torch.randint(0, 31, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(
            built.encode_image(images), model.encode_image(images)
        )
        torch.testing.assert_close(built.encode_text(text), model.encode_text(text))


def test_every_linear_layer_of_the_built_model_is_seen_by_hooks(clip) -> None:
    built = full.build(clip[0])
    layers, seen = linear_layers(built), set()
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: seen.add(name))
    with torch.no_grad():
        built.encode_image(torch.randn(1, 3, 16, 16))
    visual = {name for name in layers if name.startswith("visual.")}
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in visual
    assert seen == visual
    assert set(layers) <= set(built.state_dict())
    assert not any(parameter.requires_grad for parameter in built.parameters())


def test_a_state_dict_without_architecture_cannot_be_built(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="architecture"):
        full.build(tmp_path)
