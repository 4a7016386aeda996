"""``mtk bench``: the command on a toy track, and its table on hand-made rows."""

from __future__ import annotations

import pytest

from mtk.scores import Row
from mtk_cli import scoreboard
from mtk_cli.options import Seeds
from mtk_cli.outcome import findings

QUICK = ("bench", "--track", "toy", "--jobs", "0")
FILED = """
import mtk

def merge(*, experts):
    return experts[-1]

@mtk.hookimpl
def mtk_methods():
    yield mtk.Method(name="last", target=merge, summary="The last", symmetric=False)
"""


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", (0,)), ("0..4", (0, 1, 2, 3, 4)), ("0,2,5..6", (0, 2, 5, 6))],
)
def test_seeds(text, seeds):
    assert Seeds().convert(text, None, None) == seeds


def test_dry_run(mtk, toy):
    outcome = mtk(*QUICK, "--dry-run")
    assert outcome.code == 0
    assert outcome.err == ""
    assert "to run, 0 done already." in outcome.out
    assert "toy_many: takes at least 9 experts, the track has 3" in outcome.out
    data = mtk(*QUICK, "--dry-run", "--json", "--seed", "0..1", "--seed", "1").json
    assert data["seeds"] == [0, 1]
    assert {item["state"] for item in data["plan"]} == {"todo"}
    assert not (toy / "mtk-results").exists()


def test_a_bench_ends_in_a_table_and_continues(mtk, toy):
    outcome = mtk(*QUICK, "--method", "toy_mean", "--method", "toy-masks")
    assert outcome.code == 0, outcome.err
    assert "starting" in outcome.err
    text = outcome.out
    order = ["Baselines and controls", "experts *", "Static", "toy_mean *", "Per task"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "scale=" in text
    assert "Records: mtk-results/toy" in text
    (toy / "last.py").write_text(FILED)
    more = mtk(*QUICK, "--method", "./last.py", "-q", "-v")
    assert more.code == 0, more.err
    assert "last *" in more.out
    assert "toy_mean *" not in more.out
    assert "vs reference" in more.out
    assert more.err == ""
    rows = mtk(*QUICK, "--method", "toy_mean", "--json").json["rows"]
    assert not any(row["new"] for row in rows)


def test_a_failure_is_listed_and_gives_exit_code_1(mtk):
    outcome = mtk(*QUICK, "--method", "toy_broken")
    assert outcome.code == 1
    assert "Failed:" in outcome.out
    assert "one reason" in outcome.out
    assert "pretrained" in outcome.out


def test_nothing_to_run_gives_exit_code_3(mtk):
    outcome = mtk(*QUICK, "--method", "toy_many", "--dry-run")
    assert outcome.code == 3
    assert "nothing to run" in outcome.err
    assert "toy_many: takes at least 9" in outcome.out


def row(name, group, **more):
    return Row(name=name, qualified=f"mtk-toy:{name}", group=group, seeds=[0], **more)


def test_groups_are_kept_apart_and_empty_ones_left_out(capsys):
    rows = [
        row("pretrained", "baseline", held_in=0.5, held_in_interval=0.01),
        row("random", "control", held_in=0.4),
        row("a", "static", held_in=0.8, rank=1, rank_low=1, rank_high=2, new=True),
        row("b", "routed", held_in=0.9, worst=0.25, worst_task="cell"),
    ]
    scoreboard.write_table(rows)
    text = capsys.readouterr().out
    assert "Per task" not in text
    lines = text.splitlines()
    first = next(line for line in lines if line.startswith("a *"))
    assert first.split()[2:5] == ["1", "(1-2)", "80.0"]
    assert "25.0 cell" in text
    assert "50.0 ±1.0" in text
    assert len({line.index("held-in") for line in lines if "held-in" in line}) == 1


def test_what_the_table_says_as_a_whole():
    rows = [
        row("pretrained", "baseline", held_in=0.5),
        row("experts", "baseline", held_in=0.9),
        row("random deltas (mean)", "control", held_in=0.4),
        row("best", "static", held_in=0.8, rank=1, difference=0.1, difference_interval=0.02),
        row("mean", "static", held_in=0.7, rank=2, reference=True),
        row("worst", "static", held_in=0.4, rank=3, difference=-0.3),
        row("best", "static", held_in=0.3, note="fixed"),
    ]  # fmt: skip
    facts = {"held_in_vs_generalization": -0.25, "stability_held_in": 1.0}
    assert findings(rows, facts, "language") == [
        "Held-in between base and experts: 2 of 3 static methods.",
        "Held-in of best minus mean: +10.0 ±2.0.",
        "Held in vs generalization: rank correlation -0.25; negative in the paper's language.",
        "Stability held in: rank correlation +1.00.",
    ]
    assert findings([], facts, "speech")[0].endswith("correlation -0.25.")


def test_two_plugins_with_one_name_are_told_apart(capsys):
    twin = Row(name="a", qualified="mtk-twin:a", group="static", seeds=[0])
    scoreboard.write_table([row("a", "static"), twin])
    text = capsys.readouterr().out
    assert "mtk-toy:a" in text
    assert "mtk-twin:a" in text


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ([], ""),
        ({"a": 0.5}, "a=0.5"),
        ([{"a": 1, "b": "x"}, {"a": 1, "b": "x"}], "a=1 b=x"),
        ([{"a": 0.1}, {"a": 0.25}], "a=0.1|0.25"),
        ([{"w": [0.5, 1.0], "on": True}], "w=[0.5,1.0] on=true"),
    ],
)
def test_chosen_parameters(params, text):
    assert scoreboard.chosen(params) == text


def test_missing_numbers_are_dashes():
    assert scoreboard.percent(None) == "-"
    assert scoreboard.number(None, 1) == "-"
    assert scoreboard.percent(0.0123, 0.004, sign=True) == "+1.2 ±0.4"
    assert scoreboard.number(2_500_000, 1, unit=1e6) == "2.5"


def test_without_a_track_every_embedded_one_is_run(mtk):
    every = ("bench", "--jobs", "0", "--method", "toy_mean")
    outcome = mtk(*every)
    assert outcome.code == 0, outcome.err
    assert "toy: starting" in outcome.err
    assert "toy: 3 held-in and 2 other cells; seeds 0" in outcome.out
    (document,) = mtk(*every, "--json").json["tracks"]
    alone = mtk(*every, "--track", "toy", "--json").json
    del alone["schema"]
    assert document == alone
    assert mtk(*every, "--option", "experts=3").code == 2
    assert mtk("bench", "--method", "absent").code == 2


def test_a_track_that_fails_does_not_stop_the_others(mtk, monkeypatch):
    from mtk_cli.commands import bench

    monkeypatch.setattr(bench, "_embedded", lambda: ["gone", "toy"])
    outcome = mtk("bench", "--jobs", "0", "--method", "toy_mean")
    assert outcome.code == 1
    assert "mtk: gone: no track" in outcome.err
    assert "toy_mean *" in outcome.out


def test_what_a_statistic_does_not_reach_is_said(mtk):
    outcome = mtk(*QUICK, "--method", "toy_fisher")
    assert outcome.code == 0, outcome.err
    assert "no fisher (--json names them)" not in outcome.out
    rows = mtk(*QUICK, "--method", "toy_fisher", "--json").json["rows"]
    assert next(r for r in rows if r["name"] == "toy_fisher")["without_statistic"] == {}
