from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from mtk.checkpoint import SafetensorsCheckpoint, StateDict
from mtk.errors import CheckpointError
from mtk.views import Over, Renamed, with_prefixes

if TYPE_CHECKING:
    from pathlib import Path

STATE = {
    "lm.model.layers.0.q.weight": torch.arange(6.0).view(2, 3),
    "lm.model.layers.0.q.bias": torch.arange(2.0),
    "lm.model.norm.weight": torch.ones(3),
    "lm.lm_head.weight": torch.arange(12.0).view(4, 3),
    "vision.patch.weight": torch.ones(2, 3, 2, 2),
}
SOURCE = StateDict(STATE, "vlm")


def test_prefixes_turn_a_part_into_a_model_of_its_own() -> None:
    seen = with_prefixes(SOURCE, {"lm.model.": "model.", "lm.": ""})
    assert seen.names() == sorted(
        [
            "model.layers.0.q.weight",
            "model.layers.0.q.bias",
            "model.norm.weight",
            "lm_head.weight",
        ]
    )
    assert torch.equal(seen.read("lm_head.weight"), STATE["lm.lm_head.weight"])
    info = seen.info("model.layers.0.q.bias")
    assert (info.name, info.role, info.layer) == (
        "model.layers.0.q.bias",
        "bias",
        "model.layers.0.q.weight",
    )
    weight = seen.info("model.layers.0.q.weight")
    assert (weight.role, weight.layer, weight.shape) == ("linear", weight.name, (2, 3))
    assert (seen.label, seen.kind) == ("vlm", "full")
    assert not hasattr(seen, "part")


def test_the_rest_can_be_kept() -> None:
    seen = with_prefixes(SOURCE, {"lm.": "language_model."}, keep=True)
    assert len(seen.names()) == len(STATE)
    assert torch.equal(seen.read("vision.patch.weight"), STATE["vision.patch.weight"])
    assert "lm.lm_head.weight" not in seen.names()


def test_an_empty_prefix_adds_one() -> None:
    seen = with_prefixes(SOURCE, {"": "inner."})
    assert seen.names() == sorted(f"inner.{name}" for name in STATE)


@pytest.mark.parametrize(
    ("prefixes", "words"),
    [
        ({"text.": ""}, "no tensor that begins with 'text.'"),
        ({"lm.": "", "text.": "x."}, "no tensor that begins with 'text.'"),
        (
            {"lm.model.layers.0.": "", "lm.model.norm.": "q."},
            "would both be 'q.weight'",
        ),
    ],
)
def test_prefixes_that_fit_nothing_or_collide_are_refused(prefixes, words) -> None:
    with pytest.raises(CheckpointError, match=words):
        with_prefixes(SOURCE, prefixes)


def test_a_name_that_is_kept_cannot_be_taken() -> None:
    with pytest.raises(CheckpointError, match="which it has as well"):
        Renamed(SOURCE, {"vision.patch.weight": "lm.model.norm.weight"}, keep=True)
    with pytest.raises(CheckpointError, match="no tensor 'absent'"):
        Renamed(SOURCE, {"new": "absent"})
    with pytest.raises(CheckpointError, match="nothing of it"):
        Renamed(SOURCE, {})


def test_a_layer_taken_twice_has_its_own_weights_and_biases() -> None:
    mapping = {
        f"layers.{new}.q.{last}": f"lm.model.layers.0.q.{last}"
        for new in (3, 10)
        for last in ("weight", "bias")
    }
    seen = Renamed(SOURCE, mapping)
    for new in (3, 10):
        assert seen.info(f"layers.{new}.q.bias").layer == f"layers.{new}.q.weight"
        assert torch.equal(
            seen.read(f"layers.{new}.q.bias"), STATE["lm.model.layers.0.q.bias"]
        )


def test_a_bias_without_its_weight_is_no_bias_of_a_layer() -> None:
    info = Renamed(SOURCE, {"b": "lm.model.layers.0.q.bias"}).info("b")
    assert (info.role, info.layer) == ("other", "b")


def test_parts_pass_through_a_chain_of_views(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    file = SafetensorsCheckpoint([tmp_path / "m.safetensors"], "m")
    seen = Renamed(with_prefixes(file, {"lm.": ""}), {"head": "lm_head.weight"})
    wanted = STATE["lm.lm_head.weight"].flatten()[2:7]
    assert torch.equal(seen.part("head", 2, 7), wanted)


class Settling(StateDict):
    """A checkpoint that learns roles when it is asked to."""

    def settle(self) -> None:
        from dataclasses import replace

        name = "lm.lm_head.weight"
        self._infos[name] = replace(self._infos[name], role="head")


def test_roles_that_are_settled_later_are_seen_through_a_view() -> None:
    seen = with_prefixes(Settling(STATE, "m"), {"lm.": ""})
    assert seen.info("lm_head.weight").role == "linear"
    seen.settle()
    assert seen.info("lm_head.weight").role == "head"
    with_prefixes(SOURCE, {"lm.": ""}).settle()


def test_a_part_laid_over_a_whole_fills_up_with_it() -> None:
    text = {
        "model.norm.weight": torch.full((3,), 7.0),
        "lm_head.weight": torch.zeros(4, 3),
    }
    part = with_prefixes(StateDict(text, "text"), {"": "lm."})
    seen = Over(part, SOURCE)
    assert seen.names() == SOURCE.names()
    assert seen.label == "text"
    for name in seen.names():
        wanted = text.get(name.removeprefix("lm."), STATE[name])
        assert torch.equal(seen.read(name), wanted)
        assert seen.info(name) == SOURCE.info(name)
    assert not hasattr(seen, "part")
    with pytest.raises(
        CheckpointError, match=r"'other.lm_head.weight' is no tensor of vlm"
    ):
        Over(with_prefixes(StateDict(text, "text"), {"": "other."}), SOURCE)


def test_parts_come_from_where_the_tensor_does(tmp_path: Path) -> None:
    files = []
    for name, state in (
        ("whole", STATE),
        ("part", {"vision.patch.weight": STATE["vision.patch.weight"] + 1}),
    ):
        save_file(state, tmp_path / f"{name}.safetensors")
        files.append(SafetensorsCheckpoint([tmp_path / f"{name}.safetensors"], name))
    seen = Over(files[1], files[0])
    assert torch.equal(seen.part("vision.patch.weight", 3, 5), torch.full((2,), 2.0))
    assert torch.equal(seen.part("lm.lm_head.weight", 3, 5), torch.tensor([3.0, 4.0]))
    seen.settle()
