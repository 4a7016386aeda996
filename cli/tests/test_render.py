"""Text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtk_cli import render
from mtk_cli.progress import Reporter
from mtk_cli.render import Column


class Terminal:
    """What a test needs of a terminal of some width."""

    def __init__(self, stream, monkeypatch, columns):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")


def test_json_is_standard_json(capsys):
    values = {"nan": float("nan"), "path": Path("a"), "set": {"b", "a"}, "call": len}
    render.json_text({**values, "tuple": (1, None), "infinite": [float("inf")]})
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == render.SCHEMA
    assert data["nan"] is None
    assert data["infinite"] == [None]
    assert data["set"] == ["a", "b"]
    assert data["call"] == "builtins:len"


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e13, "30.0 TB")],
)
def test_sizes(count, text):
    assert render.size(count) == text


def test_a_title_does_not_widen_its_column(capsys):
    render.table((Column("a"), Column("b")), ("a title that is long", [("xyz", "y")]))
    assert capsys.readouterr().out.splitlines() == [
        "a    b",
        "",
        "a title that is long",
        "xyz  y",
    ]


def test_text_is_never_markup(capsys):
    render.table((Column("a"),), ("", [("[bold]x[/bold] :smile:",)]))
    render.line("[red]y[/red]", "bold")
    out = capsys.readouterr().out
    assert "[bold]x[/bold] :smile:" in out
    assert "[red]y[/red]" in out


def test_a_narrow_terminal_drops_columns_and_says_so(capsys, monkeypatch):
    import sys

    Terminal(sys.stdout, monkeypatch, 28)
    columns = (Column("name"), Column("one", drop=1), Column("two", drop=2))
    render.table(columns, ("", [("x" * 12, "y" * 8, "z" * 8)]))
    captured = capsys.readouterr()
    assert "y" * 8 in captured.out
    assert "z" not in captured.out
    assert "too narrow: two" in captured.err


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    with Reporter() as report:
        for step in range(50):
            report(f"step {step}", step / 50)
    assert capsys.readouterr().err.splitlines() == ["   0.0 s   0%  step 0"]


def test_progress_quiet_and_verbose(capsys):
    for options, count in (({"quiet": True}, 0), ({"verbose": True}, 3)):
        with Reporter(**options) as report:
            for message in "abc":
                report(message, None)
        assert len(capsys.readouterr().err.splitlines()) == count


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    import sys

    Terminal(sys.stderr, monkeypatch, 80)
    with Reporter() as report:
        report("training [x]", 0.5)
    assert "training [x]" in capsys.readouterr().err
