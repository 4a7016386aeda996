"""What is refused: in three lines, with the line of the recipe, and a way out."""

from __future__ import annotations

import pytest

from mtk.errors import ParameterError, UsageError

TWO = (
    "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]"
)
LINEAR = f"merge_method: linear\n{TWO}\n"
TIES = f"merge_method: ties\nbase_model: base\n{TWO}\n"
SLERP = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n"
SLICE = "{model: a, layer_range: [0, 2]}"


def weights(one, two, method="linear", rest=""):
    return (
        f"merge_method: {method}\nmodels:\n- {{model: a, parameters: {{weight: {one}}}}}\n"
        f"- {{model: b, parameters: {{weight: {two}}}}}\n{rest}"
    )


def slices(*sources, rest="parameters: {weight: 1}", method="linear"):
    lines = "\n".join(f"- sources: [{source}]" for source in sources)
    return f"merge_method: {method}\nslices:\n{lines}\n{rest}"


KEYS = [
    ("merge_metod: linear", 1, "did you mean 'merge_method'?"),
    ("models: [{model: a}]", 1, "no merge_method"),
    ("merge_method: [linear]", 1, "the name of a method"),
    ("merge_method: liner\nmodels: [{model: a}]", 1, "did you mean 'linear'?"),
    ("merge_method: dare\nmodels: [{model: a}]", 1, "no merge_method 'dare'"),
    ("- a\n- b", 1, "a recipe is a mapping"),
    (LINEAR + "dtipe: float16", 3, "did you mean 'dtype'?"),
    (LINEAR + "dtype: bfloat17", 3, "did you mean 'bfloat16'?"),
    (LINEAR + "dtype: int64", 3, "unknown dtype 'int64'"),
    (LINEAR + "dtype: 16", 3, "text is needed"),
    (LINEAR + "density: 0.2", 3, "under 'parameters:'"),
    (
        "merge_method: linear\nmodels:\n- {model: a, weight: 1}",
        3,
        "under 'parameters:'",
    ),
    ("merge_method: linear\nmodels:\n- {modl: a}", 3, "did you mean 'model'?"),
    ("merge_method: linear\nmodels:\n- parameters: {weight: 1}", 3, "no 'model'"),
    ("merge_method: linear\nmodels:\n- a", 3, "a model is a mapping"),
    ("merge_method: linear\nmodels:\n- model: 7", 3, "quotes"),
    ("merge_method: linear\nmodels: a", 2, "a list is needed"),
    ("merge_method: linear", 1, "one of models, slices"),
    ("merge_method: linear\nmodels: []", 1, "one of models, slices"),
    (LINEAR + f"slices: [{{sources: [{SLICE}]}}]", 1, "one of models, slices"),
    (LINEAR + "modules: {default: {}}", 1, "only one of"),
    ("merge_method: linear\nmodules: {text: {}, vision: {}}", 2, "several modules"),
    (
        "merge_method: linear\nmodules:\n  text: {model: []}",
        3,
        "did you mean 'models'?",
    ),
    (LINEAR + "chat_template: chatml", 3, "chat_template is not supported"),
    (LINEAR + "tokenizer_source: base", 3, "needs base_model"),
    (LINEAR + "tokenizer_source: a+b", 3, "folder of a tokenizer"),
    (LINEAR + "tokenizer: {tokens: {x: {source: a}}}", 3, "tokens of a tokenizer"),
    (LINEAR + "tokenizer: {pad_to_multiple_of: 8}", 3, "pad_to_multiple_of"),
    (LINEAR + "tokenizer: {sorce: base}", 3, "did you mean 'source'?"),
    (LINEAR + "tokenizer: union\ntokenizer_source: union", 3, "not both"),
]
SETTINGS = [
    (LINEAR + "parameters: {densty: 0.2}", 3, "did you mean 'density'?"),
    (
        "merge_method: linear\nmodels:\n- model: a\n  parameters:\n    wieght: 1",
        5,
        "'weight'?",
    ),
    (LINEAR + "parameters: {zzz: 1}", 3, "no parameter 'zzz'"),
    (LINEAR + "parameters: [a]", 3, "parameters is a mapping"),
    (LINEAR + "parameters: {normalize: maybe}", 3, "takes true or false"),
    (LINEAR + "parameters: {normalize: [true, false]}", 3, "over the layers"),
    (TIES + "parameters: {density: high}", 4, "takes a number, not 'high'"),
    (TIES + "parameters: {density: true}", 4, "takes a number"),
    (TIES + "parameters: {density: []}", 4, "empty"),
    (TIES + "parameters: {density: [[0.1]]}", 4, "a number, true, false or a word"),
    (TIES + "parameters: {density: null}", 4, "a number, true, false or a word"),
    (TIES + "parameters: {density: [0.5, {value: 1}]}", 4, "mixes"),
    (TIES + "parameters: {density: {filter: mlp}}", 4, "has no 'value'"),
    (TIES + "parameters: {density: {filtr: mlp, value: 1}}", 4, "'filtr'"),
    (TIES + "parameters: {density: {filter: 3, value: 1}}", 4, "quotes"),
    (TIES + "parameters: {density: 1.2}", 4, ">= 0 and <= 1, not 1.2"),
    (TIES + "parameters: {density: [0.1, -0.1]}", 4, ">= 0 and <= 1, not -0.1"),
    (TIES + "parameters: {lambda: .inf}", 4, "a finite number"),
    (TIES + "parameters: {lambda: .nan}", 4, "a finite number"),
    (TIES + "parameters: {rescale: true}", 4, "'rescale' other than false"),
    (SLERP + "parameters: {t: 1.5}", 4, ">= 0 and <= 1, not 1.5"),
    (SLERP, 1, "'t' is missing"),
    (
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {tol: 0}",
        3,
        "> 0",
    ),
    (
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 1.5}",
        3,
        "whole",
    ),
    (
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: [1, 2]}",
        3,
        "over the layers",
    ),
    ("merge_method: linear\nmodels:\n- model: a\n- model: b", 3, "no weight for a"),
    (f"merge_method: linear\nbase_model: z\n{TWO}", 2, "no weight for z"),
]
SUMS = [
    (weights(1, -1), 1, "weights 1, -1 add up to zero"),
    (weights(0.5, -0.5, "multislerp"), 1, "add up to zero"),
    (weights(0, 0), 1, "add up to zero"),
    (weights(1, -1, "ties", "base_model: c"), 1, "add up to zero"),
    (weights(1, -1, "dare_ties", "base_model: c\nparameters: {normalize: true}"), 1, "zero"),
    (weights(1, -1, "nuslerp"), 1, "add up to zero"),
    (weights(2, -1, "nuslerp"), 1, "no place on the arc"),
    (weights("[0, 1]", "[1, 1]", "nuslerp"), 1, "only if their sum does not"),
    (weights("[0, 1]", "[1, 0.5, 0]", "nuslerp"), 1, "equally many values"),
]  # fmt: skip
MODELS = [
    (f"merge_method: ties\n{TWO}", 1, "ties needs base_model"),
    (
        "merge_method: slerp\nmodels: [{model: a}, {model: b}]",
        1,
        "the one of its two models",
    ),
    (
        "merge_method: ties\nbase_model: a\nmodels: [{model: a}]",
        1,
        "at least 1 model besides",
    ),
    (f"merge_method: slerp\nbase_model: c\n{TWO}", 1, "takes 2 models, not 3"),
    (
        "merge_method: nuslerp\nmodels: [{model: a}]",
        1,
        "takes 2 models besides the base, not 1",
    ),
    (f"merge_method: passthrough\n{TWO}", 1, "takes 1 model, not 2"),
    ("merge_method: linear\nmodels:\n- model: a\n- model: a", 4, "merged with itself"),
    ("merge_method: linear\nmodels: [{model: a@x@y}]", 2, "PATH@REVISION"),
    ("merge_method: linear\nmodels: [{model: a+b+c}]", 2, "PATH+LORA"),
    ("merge_method: linear\nmodels: [{model: a+}]", 2, "PATH+LORA"),
    ("merge_method: linear\nmodels: [{model: ''}]", 2, "PATH+LORA"),
    ("merge_method: linear\nmodels: [{model: a@}]", 2, "PATH+LORA"),
    (
        "merge_method: linear\nmodels: [{model: {model: a, override_architecture: X}}]",
        2,
        "override_architecture",
    ),
]
LAYERS = [
    (slices("{model: a}"), 3, "layer_range is"),
    (slices("{model: a, layer_range: [2, 2]}"), 3, "layer_range is"),
    (slices("{model: a, layer_range: [-1, 2]}"), 3, "layer_range is"),
    (slices("{model: a, layer_range: [0, 1.5]}"), 3, "layer_range is"),
    (slices("{model: a, layer_range: [0, true]}"), 3, "layer_range is"),
    (slices(""), 3, "without sources"),
    (slices(SLICE, f"{SLICE}, {{model: b, layer_range: [0, 3]}}"), 4, "equally many layers"),
    (slices(SLICE, rest="base_model: b\nparameters: {weight: 1}", method="ties"), 3, "not among"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "says"), [*KEYS, *SETTINGS, *SUMS, *MODELS, *LAYERS]
)
def test_refused_with_the_line(recipe, text, line, says):
    with pytest.raises(UsageError) as caught:
        recipe(text)
    message = str(caught.value)
    assert message.startswith(f"config.yml, line {line}: "), message
    assert says in message
    assert len(message.splitlines()) <= 3


SHIFTED = """
merge_method: linear
slices:
  - sources:
      - {{model: a, layer_range: [0, 2]}}
      - {{model: b, layer_range: [{start}, {end}]}}
parameters:
  weight: [{{filter: {text}, value: 0.5}}, {{value: 1}}]
"""


@pytest.mark.parametrize("text", ["layers.1.", "layers.1", "1.mlp", "'1'", ".1."])
def test_filters_with_numbers_where_layers_are_renumbered(recipe, text):
    with pytest.raises(ParameterError, match=r"line 7: the filter .* layer's number"):
        recipe(SHIFTED.format(start=1, end=3, text=text))
    assert recipe(SHIFTED.format(start=0, end=2, text=text)).slabs


@pytest.mark.parametrize("text", ["w1", "fc2.weight", "mlp", "2d"])
def test_other_filters_may_have_digits(recipe, text):
    assert recipe(SHIFTED.format(start=1, end=3, text=text)).slabs


@pytest.mark.parametrize(
    "method",
    [
        "model_stock",
        "breadcrumbs",
        "della",
        "della_linear",
        "sce",
        "arcee_fusion",
        "ram",
    ],
)
def test_methods_that_mtk_lacks_are_named(recipe, method):
    with pytest.raises(UsageError, match="line 2: mtk has") as caught:
        recipe(f"models: [{{model: a}}]\nmerge_method: {method}")
    assert method in str(caught.value)


def test_a_method_that_a_plugin_brings_is_named_as_such(recipe, monkeypatch):
    from mtk import loading
    from mtk.declare import Method

    class Provided:
        item = Method(name="nearswap", target="x:y", summary="")

    class Registry:
        methods = (Provided,)

    monkeypatch.setattr(loading, "load", lambda: Registry)
    with pytest.raises(UsageError, match="mtk merge --method nearswap"):
        recipe("models: [{model: a}]\nmerge_method: nearswap")


def test_values_are_parameter_errors(recipe):
    with pytest.raises(ParameterError):
        recipe(TIES + "parameters: {density: 2}")
