"""Precedence, filters and gradients, against a plain transcription of the rules."""

from __future__ import annotations

import pytest

from mtk.recipes import evaluate

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.3.input_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]
DEPTH = {"0": 0.0, "1": 1 / 3, "3": 1.0}


def values(recipe, key="scale"):
    """A parameter's value for each of the names, as mtk evaluates it."""
    found = []
    for name in NAMES:
        layer = next((part for part in name.split(".") if part.isdigit()), None)
        # What is outside of the layers: the embeddings at 0, all others at 1.
        position = DEPTH[layer] if layer else float("embed" not in name)
        found.append(evaluate(recipe.params[key], name, position))
    return found


def arithmetic(recipe, setting, rest=""):
    return recipe(
        f"""
        merge_method: task_arithmetic
        base_model: base
        models: [{{model: a, parameters: {{weight: 1}}}}]
        parameters:
          lambda: {setting}
        {rest}
        """
    )


def test_a_number_holds_everywhere(recipe):
    assert values(arithmetic(recipe, "0.7")) == [0.7] * 6


def test_a_gradient_runs_over_the_layers_and_its_start_holds_outside(recipe):
    found = values(arithmetic(recipe, "[0.2, 0.5, 0.8]"))
    assert found == pytest.approx([0.2, 0.2, 0.4, 0.8, 0.2, 0.2])


def test_the_first_filter_that_fits_counts(recipe):
    setting = (
        "[{filter: mlp, value: 0.1}, {filter: layers.1., value: 0.2}, {value: 0.3}]"
    )
    assert values(arithmetic(recipe, setting)) == [0.3, 0.3, 0.1, 0.3, 0.3, 0.3]


def test_a_filter_is_literal_text_anywhere_in_the_name(recipe):
    for text, hit in {"norm": (3, 4), "layers.0.self": (1,), "eight": range(6)}.items():
        setting = f"[{{filter: {text!r}, value: 2}}, {{value: 1}}]"
        expected = [2.0 if number in hit else 1.0 for number in range(6)]
        assert values(arithmetic(recipe, setting)) == expected
    for text in ("layers.?.mlp", "layers.[0-9]", "l*r", "^model"):
        setting = f"[{{filter: {text!r}, value: 2}}, {{value: 1}}]"
        assert values(arithmetic(recipe, setting)) == [1.0] * 6


@pytest.mark.parametrize("text", ["'*'", "null", "''"])
def test_filters_that_fit_everything(recipe, text):
    assert values(arithmetic(recipe, f"{{filter: {text}, value: 2}}")) == [2.0] * 6


def test_a_gradient_behind_a_filter(recipe):
    setting = "[{filter: layers, value: [0, 1]}, {value: 9}]"
    found = values(arithmetic(recipe, setting))
    assert found == pytest.approx([9, 0, 1 / 3, 1, 9, 9])


def test_where_no_filter_fits_the_default_holds(recipe):
    found = values(arithmetic(recipe, "[{filter: mlp, value: 0.5}]"))
    assert found == [1.0, 1.0, 0.5, 1.0, 1.0, 1.0]


LEVELS = """
    merge_method: linear
    modules:
      default:
        slices:
          - sources:
              - model: a
                layer_range: [0, 4]
                parameters:
                  weight: [{filter: q_proj, value: 1}]
              - {model: b, layer_range: [0, 4]}
            parameters:
              weight: [{filter: q_proj, value: 2}, {filter: down, value: 3}]
        parameters:
          weight: [{filter: model, value: 4}]
    parameters:
      weight: 5
"""


def test_source_then_slice_then_module_then_recipe(recipe):
    (slab,) = recipe(LEVELS).slabs
    first, second = slab.params["weights"]
    assert [evaluate(first, name, 0.5) for name in NAMES] == [4, 1, 3, 4, 4, 5]
    assert [evaluate(second, name, 0.5) for name in NAMES] == [4, 2, 3, 4, 4, 5]


def test_a_slab_of_one_layer_takes_the_end_of_a_gradient(recipe):
    found = recipe(
        """
        merge_method: linear
        slices:
          - sources: [{model: a, layer_range: [2, 3]}]
            parameters: {weight: [1, 2, 3]}
          - sources: [{model: a, layer_range: [0, 2]}]
        parameters: {weight: [5, 6]}
        """
    )
    ((one,), (two,)) = (slab.params["weights"] for slab in found.slabs)
    layer, outside = NAMES[1], NAMES[0]
    assert [evaluate(one, layer, p) for p in (0, 0.5, 1)] == [3, 3, 3]
    assert evaluate(one, outside, 0.0) == 1
    assert [evaluate(two, layer, p) for p in (0, 0.5, 1)] == [5, 5.5, 6]


def test_settings_of_the_merge_are_not_looked_for_at_a_model(recipe):
    found = recipe(
        """
        merge_method: task_arithmetic
        base_model: base
        models: [{model: a, parameters: {weight: 1, lambda: 0.1, normalize: true}}]
        """
    )
    assert found.params["scale"] == 1.0
    assert found.params["normalize"] is False
    notes = [note for note in found.notes if note.startswith("config.yml")]
    assert len(notes) == 2
    assert all("line 3" in note and "no effect" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("'yes'", True), ("1", True), ("off", False), ("'False'", False)],
)
def test_truth_values(recipe, text, value):
    found = recipe(
        f"""
        merge_method: linear
        models: [{{model: a, parameters: {{weight: 1}}}}]
        parameters: {{normalize: {text}}}
        """
    )
    assert found.params["normalize"] is value
    assert found.params["weights"] == [1.0]


def test_numbers_in_words_as_yaml_makes_them(recipe):
    assert values(arithmetic(recipe, "1e-1")) == [0.1] * 6
