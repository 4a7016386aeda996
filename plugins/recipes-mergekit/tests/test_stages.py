from __future__ import annotations

import pytest

from mtk.errors import UsageError


def stage(name, models, method="linear", rest=""):
    listed = "\n".join(
        f"  - {{model: {model}, parameters: {{weight: 1}}}}" for model in models
    )
    head = f"name: {name}\n" if name else ""
    return f"{head}merge_method: {method}\n{rest}models:\n{listed}\n"


def documents(*texts):
    return "---\n".join(texts)


def test_merges_that_build_on_each_other(recipe):
    found = recipe(
        documents(
            stage("", ["second", "c"]),
            stage(
                "second",
                ["first", "b"],
                "slerp",
                "parameters: {t: 0.2}\nbase_model: b\n",
            ),
            stage("first", ["a", "b"]),
        )
    )
    assert [step.name for step in found.stages] == ["first", "second"]
    assert found.name == ""
    assert [source.path for source in found.experts] == ["second", "c"]
    assert [source.path for source in found.stages[1].experts] == ["b", "first"]
    assert all(not step.stages for step in found.stages)
    assert found.stages[0].notes[0].startswith("linear follows")


def test_the_merge_that_no_other_uses_is_the_result(recipe):
    found = recipe(documents(stage("last", ["first", "b"]), stage("first", ["a"])))
    assert found.name == "last"
    assert [step.name for step in found.stages] == ["first"]


def test_a_name_is_allowed_in_a_single_merge(recipe):
    found = recipe(stage("mine", ["a", "b"]))
    assert (found.name, found.stages) == ("mine", ())


def test_what_nothing_uses_is_left_out_and_said(recipe):
    found = recipe(documents(stage("odd", ["a"]), stage("", ["b", "c"])))
    assert found.stages == ()
    assert (
        found.notes[-1] == "config.yml, line 1: odd is left out: no other merge uses it"
    )


@pytest.mark.parametrize(
    ("texts", "line", "says"),
    [
        ((stage("x", ["a"]), stage("x", ["b"])), 6, "the name 'x'"),
        ((stage("", ["a"]), stage("", ["b"])), 5, "no name"),
        ((stage("x", ["a"]), stage("y", ["b"])), 6, "which merge is the result"),
        ((stage("x", ["y"]), stage("y", ["x"])), 6, "which merge is the result"),
        ((stage("x", ["y"]), stage("y", ["x"]), stage("", ["x"])), 1, "x -> y -> x"),
        ((stage("x", ["x"]), stage("", ["x"])), 1, "x -> x"),
    ],
)
def test_refused(recipe, texts, line, says):
    with pytest.raises(UsageError) as caught:
        recipe(documents(*texts))
    assert str(caught.value).startswith(f"config.yml, line {line}: ")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
