"""Weights in several files: what stands where, and in which order it is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from mtk.adapters import Layout, Piece
from mtk.checkpoint import describe
from mtk.errors import CheckpointError
from mtk.shards import indexes, open_weights, order, plan, sole, stored, write_file

if TYPE_CHECKING:
    from pathlib import Path


def info(name, *shape, dtype=torch.float32):
    return describe(name, shape, dtype)


def names(shards):
    return [[one.name for one in shard.tensors] for shard in shards]


def write(folder: Path, layout: Layout, shards, state) -> None:
    """Put everything, front to back, and the second half of each tensor first."""
    with open_weights(folder, layout, shards, {"format": "pt"}) as weights:
        for name in order(layout, shards, state):
            flat = state[name].reshape(-1)
            half = len(flat) // 2
            weights.put(name, half, flat[half:])
            weights.put(name, 0, flat[:half])
    for file, content in indexes(layout, shards).items():
        (folder / file).write_bytes(content)


def test_one_file_where_everything_fits() -> None:
    shards = plan(Layout(), [info("a", 4), info("b", 4)], 32)
    assert [shard.file for shard in shards] == ["model.safetensors"]
    assert indexes(Layout(), shards) == {}


def test_no_file_is_larger_than_asked_unless_one_tensor_is(tmp_path: Path) -> None:
    state = {
        name: torch.arange(size, dtype=torch.float32)
        for name, size in (("a", 4), ("b", 100), ("c", 4), ("d", 4), ("e", 1))
    }
    infos = [info(name, *tensor.shape) for name, tensor in state.items()]
    shards = plan(Layout(), infos, 32)
    assert names(shards) == [["a"], ["b"], ["c", "d"], ["e"]]
    assert [shard.file for shard in shards] == [
        f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)
    ]
    write(tmp_path, Layout(), shards, state)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * 113}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], state[name])
    assert set(index["weight_map"]) == set(state)


def test_the_first_tensor_may_be_the_large_one() -> None:
    assert names(plan(Layout(), [info("a", 100), info("b", 1)], 8)) == [["a"], ["b"]]


def test_components_have_their_own_files_and_names(tmp_path: Path) -> None:
    layout = Layout(
        family="diffusers",
        weights={
            "unet": "unet/diffusion_pytorch_model.safetensors",
            "text_encoder": "text_encoder/model.safetensors",
            "vae": "vae/diffusion_pytorch_model.safetensors",
        },
    )
    state = {
        "unet/a": torch.ones(4),
        "unet/b": torch.full((4,), 2.0),
        "text_encoder/a": torch.full((2,), 3.0).bfloat16(),
    }
    infos = [info(name, *t.shape, dtype=t.dtype) for name, t in state.items()]
    shards = plan(layout, infos, 16)
    assert [shard.file for shard in shards] == [
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors",
    ]
    write(tmp_path, layout, shards, state)
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert list(indexes(layout, shards)) == [index]
    places = json.loads((tmp_path / index).read_text())["weight_map"]
    assert places == {
        "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "b": "diffusion_pytorch_model-00002-of-00002.safetensors",
    }
    assert torch.equal(
        load_file(tmp_path / "unet" / places["b"])["b"], torch.full((4,), 2.0)
    )
    text = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert torch.equal(text["a"], state["text_encoder/a"])


def test_a_slash_without_its_component_belongs_to_the_whole() -> None:
    (shard,) = plan(Layout(), [info("x/a", 1)])
    assert shard.tensors[0].name == "x/a"
    with pytest.raises(CheckpointError, match="1 tensors belong to no file"):
        plan(Layout(weights={"unet": "unet/m.safetensors"}), [info("x/a", 1)])


# A fused (3, 2, 4) tensor in a component, seen as three matrices, beside a plain one.
FUSED = Layout(
    weights={"": "model.safetensors", "moe": "moe/model.safetensors"},
    pieces={f"moe/experts.{i}.w": Piece("moe/experts.w", 8 * i) for i in range(3)},
    stored={"moe/experts.w": info("moe/experts.w", 3, 2, 4)},
)


def pieces() -> dict[str, torch.Tensor]:
    state = {f"moe/experts.{i}.w": torch.rand(2, 4).bfloat16() for i in range(3)}
    state["moe/gate"] = torch.rand(3).bfloat16()
    state["head"] = torch.rand(5)
    return state


def test_pieces_become_the_tensors_that_are_stored(tmp_path: Path) -> None:
    state = pieces()
    infos = [info(n, *t.shape, dtype=t.dtype) for n, t in reversed(state.items())]
    assert {(one.name, one.shape, one.dtype) for one in stored(FUSED, infos)} == {
        ("moe/experts.w", (3, 2, 4), "bfloat16"),
        ("moe/gate", (3,), "bfloat16"),
        ("head", (5,), "float32"),
    }
    shards = plan(FUSED, infos, 48)
    assert names(shards) == [["head"], ["moe/gate"], ["moe/experts.w"]]
    wanted = ["head", "moe/gate", *(f"moe/experts.{i}.w" for i in range(3))]
    assert order(FUSED, shards, state) == wanted
    write(tmp_path, FUSED, shards, state)
    index = json.loads((tmp_path / "moe/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * (24 + 3)
    fused = load_file(tmp_path / "moe" / index["weight_map"]["experts.w"])["experts.w"]
    whole = torch.stack([state[f"moe/experts.{i}.w"] for i in range(3)])
    assert torch.equal(fused, whole)


def test_one_file_for_everything_has_the_names_of_the_view(tmp_path: Path) -> None:
    state = pieces()
    infos = [info(n, *t.shape, dtype=t.dtype) for n, t in state.items()]
    layout = sole(FUSED)
    shards = plan(layout, infos, 10**9)

    def fill(weights):
        for name, tensor in state.items():
            weights.put(name, 0, tensor)

    write_file(tmp_path / "one.safetensors", layout, shards, {}, fill)
    found = load_file(tmp_path / "one.safetensors")
    assert set(found) == {"moe/experts.w", "moe/gate", "head"}
    assert torch.equal(found["moe/experts.w"][1], state["moe/experts.1.w"])


@pytest.mark.parametrize("forgotten", ["moe/experts.1.w", "head"])
def test_a_tensor_that_was_not_written_is_noticed(
    tmp_path: Path, forgotten: str
) -> None:
    state = pieces()
    infos = [info(n, *t.shape, dtype=t.dtype) for n, t in state.items()]
    shards = plan(FUSED, infos)

    def incomplete() -> None:
        with open_weights(tmp_path, FUSED, shards, {}) as weights:
            for name in set(state) - {forgotten}:
                weights.put(name, 0, state[name])

    with pytest.raises(CheckpointError, match="missing"):
        incomplete()


def test_ten_thousand_tensors_are_planned_at_once() -> None:
    """Linear: a fifth of a second here would be minutes, were it quadratic."""
    infos = [info(f"layers.{i}.w", 8) for i in range(20_000)]
    shards = plan(Layout(), infos, 32 * 100)
    assert len(shards) == 200
    assert len(order(Layout(), shards, [one.name for one in infos])) == 20_000
