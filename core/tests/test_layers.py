"""Layers in tensor names."""

from __future__ import annotations

import pytest

from mtk.errors import UsageError
from mtk.layers import depths, only_stack, place, position


@pytest.mark.parametrize(
    ("name", "stack", "layer", "rest"),
    [
        ("model.layers.3.mlp.up.weight", "model.layers.", 3, "mlp.up.weight"),
        ("h.11.attn.bias", "h.", 11, "attn.bias"),
        ("a.layers.0.experts.7.w1", "a.layers.", 0, "experts.7.w1"),
        ("unet/down.0.resnets.1.w", "unet/down.", 0, "resnets.1.w"),
        ("layers.10.w", "layers.", 10, "w"),
    ],
)
def test_the_first_number_is_the_layer(
    name: str, stack: str, layer: int, rest: str
) -> None:
    found = place(name)
    assert found is not None
    assert (found.stack, found.layer, found.rest) == (stack, layer, rest)
    assert found.at(layer) == name
    assert found.at(5) == f"{stack}5.{rest}"


@pytest.mark.parametrize("name", ["lm_head.weight", "layers.x.w", "w.3", "layer3.w"])
def test_what_is_in_no_layer(name: str) -> None:
    assert place(name) is None


def test_depths_count_each_stack() -> None:
    names = ["e.layers.0.w", "e.layers.11.w", "d.layers.1.w", "head.w"]
    assert depths(names) == {"e.layers.": 12, "d.layers.": 2}


@pytest.mark.parametrize(
    ("name", "role", "where"),
    [
        ("l.0.w", "", 0.0),
        ("l.1.w", "", 0.25),
        ("l.4.w", "", 1.0),
        ("one.0.w", "", 0.0),
        ("model.embed_tokens.weight", "", 0.0),
        ("wte.weight", "embedding", 0.0),
        ("norm.weight", "norm", 1.0),
        ("lm_head.weight", "linear", 1.0),
    ],
)
def test_positions_run_from_the_first_layer_to_the_last(
    name: str, role: str, where: float
) -> None:
    assert position(name, {"l.": 5, "one.": 1}, role) == where


def test_only_one_stack_can_be_cut() -> None:
    assert only_stack(["l.0.w", "l.1.w", "head"], "m") == "l."
    with pytest.raises(UsageError, match=r"m: .* it has d\. and e\."):
        only_stack(["e.0.w", "d.0.w"], "m")
    with pytest.raises(UsageError, match="it has none"):
        only_stack(["head"], "m")
