"""Tables on terminals of some width: nothing in them is cut."""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import pytest

from mtk.measures import Part
from mtk.scores import Row
from mtk.testing._toy_kinds import WORDS, kinds_registry
from mtk_cli import layout, render, scoreboard
from mtk_cli.render import Column

NAMES = ("pretrained", "random deltas (average)", "task_arithmetic", "a")


class Read(NamedTuple):
    out: str
    err: str


def read(capsys):
    """What was written, without colours."""
    return Read(*(re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr()))


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal of some width; called after capsys has replaced it."""

    def make(columns):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")

    return make


@pytest.mark.parametrize(
    ("title", "width", "lines"),
    [
        ("rank", 9, ["rank"]),
        ("held-in %", 9, ["held-in %"]),
        ("category_accuracy held-in %", 9, ["category_", "accuracy", "held-in %"]),
        ("category_accuracy held-in %", 17, ["category_accuracy", "held-in %"]),
        ("category_accuracy held-in %", 40, ["category_accuracy held-in %"]),
        ("unbreakable", 3, ["unbreakable"]),
    ],
)
def test_headings_are_broken_after_spaces_and_underscores(title, width, lines):
    assert layout.heading(title, width) == lines


def test_a_column_is_as_wide_as_its_longest_number_or_word():
    assert layout.least(Column("a b"), ["12.3 ±4.5", "-"]) == 9
    assert layout.least(Column("generalization %"), ["1"]) == 14
    prose = "words of which the longest is parameterisation, and that is that"
    assert layout.least(Column("x", fold=True), [prose]) == len("parameterisation,")
    assert layout.least(Column("x", fold=True), ["a b " * 9]) == layout.LEAST_FOLDED
    assert layout.least(Column("x", fold=True), [prose * 2]) == len(prose * 2) // 4
    assert layout.least(Column("x", fold=True), ["x" * 99]) == layout.LONGEST_WORD
    assert layout.least(Column("x", fold=True), ["off_diagonal_scale=0.123 a"]) == 24


def test_widths_fill_the_line_and_no_more():
    columns = (Column("name"), Column("one two"), Column("text", fold=True))
    rows = [["x" * 8, "1", "many words " * 9]]
    least = layout.needed(columns, rows)
    assert least == 8 + 3 + 99 // 4 + 2 * layout.GAP
    for width in range(least, 160):
        widths = layout.widths(columns, rows, width)
        total = sum(widths) + 2 * layout.GAP
        assert total == min(width, 8 + 7 + len(rows[0][2]) + 2 * layout.GAP)


def test_groups_stay_together_where_a_table_is_split():
    columns = (
        Column("n"),
        Column("a", group="x"),
        Column("b", group="y"),
        Column("c", group="x"),
        Column("d"),
    )
    rows = [["n" * 5, "1" * 5, "2" * 5, "3" * 5, "4" * 5]]
    assert layout.blocks(columns, rows, 100) == [[0, 1, 2, 3, 4]]
    assert layout.blocks(columns, rows, 19) == [[0, 1, 3], [0, 2, 4]]
    assert layout.blocks(columns, rows, 12) == [[0, 1], [0, 3], [0, 2], [0, 4]]
    assert layout.blocks(columns, rows, 3) == [[0, 1], [0, 3], [0, 2], [0, 4]]


def row(name, group="static", **more):
    return Row(name=name, qualified=f"mtk-toy:{name}", group=group, seeds=[0], **more)


def rows():
    found = []
    for number, name in enumerate(NAMES):
        share = number / 10 + 0.0123
        one = row(
            name, rank=number + 1, rank_low=1, rank_high=10, held_in=share,
            held_in_interval=0.045, normalised=share + 0.2, worst=share / 3,
            worst_task="scanlines-89", generalization=share + 0.3,
            generalization_interval=0.067, ability=share + 0.4, ability_interval=0.089,
            merge_seconds=1234.5 + number, statistics_seconds=number, peak_bytes=10**9,
            params=[{"off_diagonal_scale": 0.123456, "scale": number}], new=True,
        )  # fmt: skip
        found.append(one)
    return found


def numbers(text):
    """Everything that is no name, heading or rule."""
    return sorted(word for word in text.split() if word[:1].isdigit() or "=" in word)


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 132, 200])
@pytest.mark.parametrize("verbose", [False, True])
def test_no_number_or_name_of_the_scoreboard_is_cut(capsys, terminal, columns, verbose):
    scoreboard.write_table(rows(), verbose=verbose)
    piped = read(capsys).out
    terminal(columns)
    scoreboard.write_table(rows(), verbose=verbose)
    captured = read(capsys)
    assert captured.err == ""
    assert numbers(captured.out) == numbers(piped)
    tables = [line for line in captured.out.splitlines() if line.startswith("task_")]
    assert len(tables) == captured.out.count("Static: one merged model") >= 1
    assert all(line.startswith("task_arithmetic *") for line in tables)
    if columns >= 60:
        assert all(len(line) <= columns for line in captured.out.splitlines())


@pytest.mark.parametrize("columns", [60, 80])
def test_metrics_that_do_not_rank_are_all_shown(capsys, terminal, columns):
    declared = {p.item.name: p.item for p in kinds_registry().metrics}
    part = Part(mean=0.512, interval=0.034)
    parts = dict.fromkeys(("held_in", "generalization", "ability"), part)
    found = [row(name, metrics={"exact": parts, "overlap": parts}) for name in NAMES]
    terminal(columns)
    scoreboard.write_metrics(found, WORDS, declared)
    captured = read(capsys)
    places = len(scoreboard.other_places(found, WORDS))
    assert captured.err == ""
    assert captured.out.count("51.2 ±3.4") == places * len(NAMES)
    assert all(len(line) <= columns for line in captured.out.splitlines())


def test_rows_that_say_nothing_are_left_out_of_a_further_table(capsys, terminal):
    columns = (Column("name"), Column("one"), Column("two"))
    terminal(12)
    render.table(
        columns,
        ("First", [("aaaa", "1111", "2222"), ("bbbb", "3333", "")]),
        ("Second", [("cccc", "4444", "")]),
        split=True,
    )
    first, second = read(capsys).out.split("\n\nname  two")
    assert "cccc" in first
    assert "Second" in first
    assert "aaaa" in second
    assert "bbbb" not in second
    assert "Second" not in second


def test_a_row_becomes_a_paragraph_where_a_list_does_not_fit(capsys, terminal):
    columns = (Column("name"), Column("number"), Column("text", fold=True))
    terminal(40)
    text = "some words and then some more words to fill it"
    render.table(columns, ("Title", [("x" * 20, "1", text), ("y", "2", "")]))
    captured = read(capsys)
    assert captured.err == ""
    assert captured.out.splitlines() == [
        "Title",
        "",
        "x" * 20,
        "  number           1",
        "  text             some words and then",
        "                   some more words to",
        "                   fill it",
        "",
        "y",
        "  number           2",
    ]


def test_sections_that_do_not_fit_together_become_tables_of_their_own(capsys, terminal):
    columns = (Column("name"), Column("a"), Column("b"))
    terminal(31)
    render.table(
        columns,
        ("Wide", [("x" * 25, "1", "2")]),
        ("Also wide", [("y", "1" * 11, "2" * 12)]),
        ("Wider", [("z" * 25, "1" * 12, "2")]),
    )
    captured = read(capsys)
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert sum(line.startswith("name") for line in lines) == 2
    assert lines[-5:] == [
        "Wider",
        "",
        "z" * 25,
        f"  a                {'1' * 12}",
        lines[-1],
    ]
    assert all(len(line) <= 31 for line in lines)
