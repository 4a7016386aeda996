"""``mtk tracks list``, and the parts of a track in other commands."""

from __future__ import annotations

import json

from click.testing import CliRunner

from mtk.measures import Part
from mtk.scores import Row
from mtk.testing._toy_kinds import NOISE, WORDS, kinds_registry
from mtk_cli import scoreboard
from mtk_cli.commands import tracks


def listed(*args):
    result = CliRunner().invoke(tracks.command, ["list", *args], standalone_mode=False)
    assert result.exception is None, result.output
    return result.output


def test_a_track_is_listed_with_what_it_stands_on(toy):
    text = listed()
    head, line = text.splitlines()[:2]
    assert head.split()[:2] == ["track", "setting"]
    assert line.split()[:5] == ["toy", "tests", "3", "2", "-"]
    assert line.endswith("yes")
    (track,) = json.loads(listed("--json"))["tracks"]
    assert (track["held_in"], track["generalization"], track["ability"]) == (3, 2, 0)
    assert track["runs_here"] is True
    assert track["missing"] == []


def test_what_is_missing_is_told(toy, monkeypatch):
    from mtk.testing._toy import ToyTrack

    monkeypatch.setattr(ToyTrack, "missing", lambda _: ["a root"], raising=False)
    assert listed().splitlines()[1].endswith("no: a root")
    (track,) = json.loads(listed("--json"))["tracks"]
    assert track["missing"] == ["a root"]


def row(name, **more):
    return Row(
        name=name, qualified=f"mtk-toy:{name}", group="static", seeds=[0], **more
    )


def test_base_ability_has_a_column_where_there_is_any(capsys):
    scoreboard.write_table([row("a", held_in=0.5)])
    assert "base ability" not in capsys.readouterr().out
    scoreboard.write_table(
        [row("a", held_in=0.5, ability=0.25, ability_interval=0.02), row("b")]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "base ability %" in lines[0]
    assert "25.0 ±2.0" in next(line for line in lines if line.startswith("a"))


def test_metrics_that_do_not_rank_have_a_table_of_their_own(capsys):
    declared = {p.item.name: p.item for p in kinds_registry().metrics}
    parts = {"held_in": Part(mean=0.5, interval=0.01)}
    one = row("a", metrics={"closeness": parts})
    scoreboard.write_metrics([one], NOISE, declared)
    assert capsys.readouterr().out == ""
    other = {"exact": parts, "overlap": parts | {"ability": Part(mean=1, interval=0)}}
    scoreboard.write_metrics([row("a", metrics=other), row("b")], WORDS, declared)
    text = capsys.readouterr().out
    assert "overlap held-in %" in text
    assert "overlap base %" in text
    assert "exact" not in text
    line = next(line for line in text.splitlines() if line.startswith("b"))
    assert line.split() == ["b", "-", "-"]


def test_a_number_without_a_range_is_no_percentage():
    from mtk.declare import Metric

    metric = Metric(name="kid", target="a:b", summary="", low=None, high=None)
    part = Part(mean=0.01234, interval=0.0021)
    assert scoreboard.measured(part, metric) == "0.0123 ±0.0021"
    assert (
        scoreboard.measured(Part(mean=-0.0004, interval=0.05), metric) == "0.000 ±0.050"
    )
    assert scoreboard.measured(Part(mean=213.4, interval=31.0), metric) == "213 ±31"
    assert scoreboard.measured(Part(mean=0.25, interval=0.0), metric) == "0.25 ±0"
    assert scoreboard.measured(None, metric) == "-"
