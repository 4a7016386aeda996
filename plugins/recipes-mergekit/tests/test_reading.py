from __future__ import annotations

import pytest

import mtk
from mtk.parameters import complete
from mtk.recipes import Choice, Source
from mtk_recipes_mergekit.methods import BY_NAME, KNOWN, ROWS

TWO = "models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 1}}]"


def test_a_whole_recipe(recipe, tmp_path):
    found = recipe(
        """
        models:
          - model: base
          - model: a
            parameters:
              density: 0.5
              weight: 0.5
          - model: b
            parameters:
              density: 0.5
              weight: 0.3
        merge_method: ties
        base_model: base
        parameters:
          normalize: true
          int8_mask: true
        dtype: float16
        """
    )
    assert found.method == "ties"
    assert found.base == Source(path="base", where="config.yml, line 2")
    assert found.experts == (
        Source(path="a", where="config.yml, line 3"),
        Source(path="b", where="config.yml, line 7"),
    )
    assert found.params == {
        "weights": [0.5, 0.3],
        "density": 0.5,
        "scale": 1.0,
        "merge_func": "mean",
        "threshold_scope": "tensor",
        "keep_rule": "exact",
        "sign_tie": "positive",
    }
    assert (found.dtype, found.donor) == ("float16", "base")
    assert (found.tokenizer, found.vocabulary) == ("donor", "refuse")
    assert found.where == str(tmp_path / "config.yml")
    notes = "\n".join(found.notes)
    assert "one threshold per tensor" in notes
    assert "line 15: int8_mask has no effect" in notes
    assert "computes in float32" in notes


@pytest.mark.parametrize(
    ("lines", "method", "params"),
    [
        ("merge_method: linear", "linear", {"weights": [0.5, 1.0], "normalize": True}),
        (
            "merge_method: multislerp",
            "multislerp",
            {"weights": [0.5, 1.0], "normalize": True, "eps": 1e-8, "origin": "zero"},
        ),
        ("merge_method: karcher", "karcher", {"iterations": 10, "tolerance": 1e-5}),
        (
            "merge_method: karcher\nparameters: {max_iter: 3, tol: 0.1}",
            "karcher",
            {"iterations": 3, "tolerance": 0.1},
        ),
        (
            "merge_method: nuslerp\nparameters: {nuslerp_flatten: false}",
            "slerp",
            {
                "t": 1 / 1.5,
                "origin": "zero",
                "scope": "row",
                "dot_threshold": 1.0,
                "eps": 1e-8,
            },
        ),
    ],
)
def test_methods_without_a_base(recipe, lines, method, params):
    found = recipe(f"{lines}\n{TWO}")
    assert found.method == method
    assert found.params == params
    assert [source.path for source in found.experts] == ["a", "b"]
    assert found.base is None
    assert found.donor == "a"
    assert any("of a, the first model" in note for note in found.notes)


@pytest.mark.parametrize(
    ("lines", "method", "params"),
    [
        (
            "merge_method: task_arithmetic\nparameters: {lambda: 0.4}",
            "task_arithmetic",
            {"weights": [0.5, 1.0], "scale": 0.4, "normalize": False},
        ),
        (
            "merge_method: dare_linear\nparameters: {density: 0.3}",
            "dare",
            {
                "merge": "task_arithmetic",
                "weights": [0.5, 1.0],
                "scale": 1.0,
                "normalize": False,
                "density": 0.3,
                "rescale": "l1",
            },
        ),
        (
            "merge_method: dare_ties\nparameters: {rescale: false, normalize: true}",
            "dare",
            {
                "merge": "ties",
                "merge_func": "mean",
                "weights": [0.5, 1.0],
                "scale": 1.0,
                "density": 1.0,
                "ties_density": 1.0,
                "rescale": "none",
                "threshold_scope": "tensor",
                "keep_rule": "exact",
                "sign_tie": "positive",
            },
        ),
    ],
)
def test_methods_on_differences(recipe, lines, method, params):
    found = recipe(f"{lines}\nbase_model: base\n{TWO}")
    assert (found.method, found.params) == (method, params)
    assert found.base.path == "base"


def test_one_value_per_model_where_they_differ(recipe):
    found = recipe(
        """
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 1, density: 0.2}}
          - {model: b, parameters: {weight: 1, density: 0.4}}
        """
    )
    assert found.params["density"] == [0.2, 0.4]


def test_in_an_average_the_base_is_one_more_model(recipe):
    text = f"merge_method: linear\nbase_model: base\n{TWO}\nparameters: {{weight: 0.2}}"
    found = recipe(text)
    assert [source.path for source in found.experts] == ["a", "b", "base"]
    assert found.params["weights"] == [0.5, 1.0, 0.2]
    assert found.base is None
    assert found.donor == "base"
    assert any("base is one more model" in note for note in found.notes)


@pytest.mark.parametrize("models", ["[{model: a}, {model: b}]", "[{model: a}]"])
def test_slerp_starts_at_the_base_wherever_it_stands(recipe, models):
    found = recipe(
        f"merge_method: slerp\nbase_model: b\nmodels: {models}\nparameters: {{t: 0.3}}"
    )
    assert [source.path for source in found.experts] == ["b", "a"]
    assert found.params["t"] == 0.3
    assert found.base is None


def test_spheres_around_the_base_where_one_is_named(recipe):
    for method in ("nuslerp", "multislerp"):
        found = recipe(f"merge_method: {method}\nbase_model: base\n{TWO}")
        assert found.params["origin"] == "base"
        assert found.base.path == "base"
        assert any("differences to the base" in note for note in found.notes)


@pytest.mark.parametrize("method", ["karcher", "multislerp"])
def test_a_single_model_is_copied(recipe, method):
    found = recipe(
        f"merge_method: {method}\nmodels: [{{model: a, parameters: {{weight: 3}}}}]"
    )
    assert found.method == "linear"
    assert found.params == {"weights": [1.0], "normalize": False}


@pytest.mark.parametrize(
    ("flatten", "row_wise", "scope"),
    [
        ("true", "true", "tensor"),
        ("false", "false", "row"),
        ("false", "true", "column"),
    ],
)
def test_scopes_of_nuslerp(recipe, flatten, row_wise, scope):
    found = recipe(
        f"merge_method: nuslerp\n{TWO}\n"
        f"parameters: {{nuslerp_flatten: {flatten}, nuslerp_row_wise: {row_wise}}}"
    )
    assert found.params["scope"] == scope


def test_layers_are_stacked(recipe):
    found = recipe(
        """
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 3]}]
          - sources:
              - model: b
                layer_range: [1, 4]
                parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}
        """
    )
    first, second = found.slabs
    assert (found.method, found.experts, found.params) == ("linear", (), {})
    assert first.sources == ((Source(path="a", where="config.yml, line 3"), 0, 3),)
    assert first.params == {"weights": [1.0], "normalize": False}
    assert second.sources[0][1:] == (1, 4)
    cases = Choice((("*o_proj*", 0.0), ("*", 1.0)))
    assert second.params == {"weights": [cases], "normalize": False}
    assert second.where == "config.yml, line 4"
    assert found.donor == "a"


def test_each_slice_may_have_a_base(recipe):
    found = recipe(
        """
        merge_method: ties
        base_model: base
        slices:
          - sources:
              - {model: base, layer_range: [0, 1]}
              - {model: a, layer_range: [0, 1]}
          - sources:
              - {model: a, layer_range: [1, 2]}
              - {model: b, layer_range: [3, 4]}
            base_model: b
        parameters: {weight: 1}
        """
    )
    assert [slab.base.path for slab in found.slabs] == ["base", "b"]
    assert [slab.base_range for slab in found.slabs] == [(0, 1), (3, 4)]
    assert [slab.sources[0][0].path for slab in found.slabs] == ["a", "a"]


def test_out_dtype_is_that_of_the_result(recipe):
    assert recipe(f"merge_method: linear\n{TWO}\ndtype: float16").dtype == "float16"
    both = recipe(
        f"merge_method: linear\n{TWO}\ndtype: float32\nout_dtype: torch.bfloat16"
    )
    assert both.dtype == "bfloat16"
    assert recipe(f"merge_method: linear\n{TWO}").dtype is None


@pytest.mark.parametrize(
    ("line", "tokenizer", "vocabulary"),
    [
        ("tokenizer_source: union", "union", "union"),
        ("tokenizer_source: base", "base", "base"),
        ("tokenizer_source: other/model", "other/model", "refuse"),
        ("tokenizer: {source: union, tokens: {}}", "union", "union"),
        ("tokenizer: {pad_to_multiple_of: null}", "union", "union"),
        ("tokenizer: {source: {model: {path: other}}}", "other", "refuse"),
        ("tokenizer_source: null", "donor", "refuse"),
    ],
)
def test_tokenizers(recipe, line, tokenizer, vocabulary):
    found = recipe(f"merge_method: task_arithmetic\nbase_model: base\n{TWO}\n{line}")
    assert (found.tokenizer, found.vocabulary) == (tokenizer, vocabulary)


def test_models_as_keys(recipe):
    found = recipe(
        """
        merge_method: linear
        models:
          - model: {model: {path: a/b}}
            parameters: {weight: 1}
          - model: {model: c, lora: null}
            parameters: {weight: 1}
        """
    )
    assert [source.path for source in found.experts] == ["a/b", "c"]


@pytest.mark.parametrize(
    ("name", "path", "adapter"),
    [
        ("one+adapter", "one", "adapter"),
        ("one/two@main+adapter@v2", "one/two@main", "adapter@v2"),
        ("{model: {path: one, revision: main}, lora: x}", "one@main", "x"),
        ("{model: one, lora: {path: x, revision: v2}}", "one", "x@v2"),
    ],
)
def test_adapters_and_revisions(recipe, name, path, adapter):
    found = recipe(
        f"""
        merge_method: linear
        models: [{{model: {name}, parameters: {{weight: 1}}}}]
        """
    )
    where = "config.yml, line 2"
    assert found.experts == (Source(path=path, adapter=adapter, where=where),)
    assert found.donor == path


def test_a_model_with_an_adapter_is_another_model(recipe):
    found = recipe(
        """
        merge_method: ties
        base_model: base
        models: [{model: base}, {model: base+x}, {model: base+y}]
        parameters: {weight: 1}
        """
    )
    assert [source.adapter for source in found.experts] == ["x", "y"]
    assert found.base.adapter is None


def test_what_is_known_but_does_nothing_is_said_once(recipe):
    found = recipe(
        """
        merge_method: linear
        models:
          - {model: a, parameters: {weight: 1, density: 0.2}}
          - {model: b, parameters: {weight: 1, density: 0.2}}
        """
    )
    (note,) = [note for note in found.notes if "density" in note]
    assert note.startswith("config.yml, line 3: density has no effect in linear")
    assert "1 times more" in note


def test_what_mergekit_leaves_out_of_the_end_is_said(recipe):
    found = recipe(
        """
        merge_method: karcher
        slices:
          - sources: [{model: a, layer_range: [0, 1]}]
          - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
        """
    )
    assert found.slabs[0].method == "linear"  # a single model is copied
    assert found.slabs[1].method is None
    assert any("mergekit takes the first 1 only" in note for note in found.notes)


def test_cases_that_never_apply_are_said(recipe):
    found = recipe(
        """
        merge_method: slerp
        base_model: a
        models: [{model: a}, {model: b}]
        parameters:
          t:
            - value: 0.5
            - filter: mlp
              value: 0.1
        """
    )
    assert found.params["t"] == 0.5
    assert any("line 6: cases of t behind this one never" in n for n in found.notes)


def test_every_row_fits_the_method_it_names():
    registry = mtk.load()
    ours = {provided.item.name: provided.item for provided in registry.methods}
    if not ours:
        pytest.skip("no methods are installed")
    finished = {"flatten", "row_wise", "weights"}  # made into t and scope
    for row in ROWS:
        method = ours[row.ours]
        params = {param.name for param in method.params}
        named = {knob.ours for knob in row.knobs} - {""}
        if row.finish:
            named -= finished
        assert named | set(row.fixed) <= params, row.name
        complete(method.params, row.fixed, owner=row.name)
        for knob in row.knobs:
            for word in knob.words or ():
                complete(method.params, {knob.ours: word}, owner=row.name)


def test_the_names_of_methods_are_mergekits():
    assert len(set(KNOWN)) == len(KNOWN) == 20
    assert set(BY_NAME) < set(KNOWN)
