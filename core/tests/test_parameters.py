from __future__ import annotations

import pytest

import mtk
from mtk.errors import ParameterError
from mtk.parameters import complete, parse, suggestion

PARAMS = (
    mtk.Param("density", 0.2, low=0.0, high=1.0),
    mtk.Param("steps", 5, low=1),
    mtk.Param("rate", 0.1, low=0.0, open_low=True),
    mtk.Param("mode", "mean", choices=("mean", "sum")),
    mtk.Param("flag", default=False),
    mtk.Param("weights", None, type="floats"),
    mtk.Param("include", ("*",)),
    mtk.Param("initial", 0.3, type="float_or_floats"),
)


def test_defaults_are_filled_in_and_null_asks_for_them() -> None:
    values = complete(PARAMS, {"density": None}, owner="m")
    assert values["density"] == 0.2
    assert values["weights"] is None
    assert values["include"] == ["*"]


@pytest.mark.parametrize(
    "given",
    [
        {"density": 1.5},
        {"density": "much"},
        {"density": True},
        {"density": float("nan")},
        {"steps": 0},
        {"steps": 2.0},
        {"rate": 0.0},
        {"mode": "median"},
        {"flag": 1},
        {"weights": [1.0, 2.0]},
        {"weights": [1.0, float("inf"), 0.0]},
        {"weights": 3.0},
        {"include": [1]},
        {"initial": [0.1]},
        {"densty": 0.1},
    ],
)
def test_bad_values_are_refused_in_at_most_three_lines(
    given: dict[str, object],
) -> None:
    with pytest.raises(ParameterError) as caught:
        complete(PARAMS, given, owner="m", experts=3)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_whole_number_is_a_number() -> None:
    value = complete(PARAMS, {"density": 1}, owner="m")["density"]
    assert value == 1.0
    assert isinstance(value, float)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(ParameterError, match="density"):
        complete(PARAMS, {"densty": 0.1}, owner="m")
    assert suggestion("zzz", ["density"]) == ""


def test_parse_reads_json_and_takes_anything_else_as_a_word() -> None:
    pairs = [
        "density=0.1",
        "mode=sum",
        'x="sum"',
        "flag=true",
        "weights=[1, 2]",
        "n=null",
    ]
    assert parse(pairs) == {
        "density": 0.1,
        "mode": "sum",
        "x": "sum",
        "flag": True,
        "weights": [1, 2],
        "n": None,
    }


@pytest.mark.parametrize("pairs", [["density"], ["=1"], ["a=1", "a=2"]])
def test_pairs_that_make_no_sense_are_refused(pairs: list[str]) -> None:
    with pytest.raises(ParameterError):
        parse(pairs)
