"""Tracks from files in ``mtk show``, ``tracks list`` and ``list-tasks``; a small format."""

from __future__ import annotations

import json
import re
import sys

import pytest

from mtk_cli.main import cli

PLUGIN = '''
"""Files of JSON that describe a track."""
import json
from functools import partial
from pathlib import Path
import mtk


@mtk.hookimpl
def mtk_track_formats():
    yield mtk.TrackFormat(
        name="json", target="form_plugin:read", summary="JSON", suffixes=(".json",))


class Live:
    def __init__(self, lost, *, cache, seed, options):
        self.lost = lost

    def missing(self):
        return self.lost


def read(path):
    try:
        said = json.loads(Path(path).read_text())
    except ValueError as error:
        raise mtk.errors.UsageError(f"{path}: no JSON") from error
    lost = said.pop("lost", [])
    tasks = tuple(mtk.Task(**task) for task in said.pop("tasks"))
    return mtk.Track(
        target=partial(Live, lost), tasks=tasks, version="1", adapter="toy", **said)
'''
SAID = {
    "name": "mine",
    "summary": "A track of mine",
    "setting": "letters",
    "base": "a small model " * 9 + "end",
    "source": "letters that were written by hand " * 5 + "end",
    "licence": "one with many conditions " * 4 + "end",
    "lost": ["base: nowhere", "expert of one: nowhere either"],
    "tasks": [
        {"name": "one", "held_in": True},
        {"name": "two", "held_in": False},
        {"name": "three", "held_in": False, "ability": True},
    ],
}


@pytest.fixture
def file(toy, tmp_path, monkeypatch):
    """``mine.json`` in the current folder, and the plugin that reads it."""
    site = tmp_path / "form-site"
    site.mkdir()
    (site / "form_plugin.py").write_text(PLUGIN)
    info = site / "mtk_form-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mtk-form\nVersion: 0.3.0\n"
    )
    (info / "entry_points.txt").write_text("[mtk]\nform = form_plugin\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MTK_PLUGINS", "mtk-form,mtk-toy")
    monkeypatch.delitem(sys.modules, "form_plugin", raising=False)
    place = toy / "mine.json"
    place.write_text(json.dumps(SAID))
    return place


def change(file, **values):
    file.write_text(json.dumps(SAID | values))


def test_show_says_what_a_file_declares_and_what_is_missing(mtk, file):
    shown = mtk("show", "mine.json")
    assert (shown.code, shown.err) == (0, "")
    for line in (
        "mine (track)",
        "  setting          letters",
        "  cells            1 held-in and 1 other cells, 1 of base ability",
        "  held-in          one",
        "  generalization   two",
        "  base ability     three",
        "  metrics          accuracy",
        "  runs here        no, 2 missing",
        "  missing          base: nowhere",
        "  missing          expert of one: nowhere either",
    ):
        assert line in shown.out.splitlines()
    (item,) = mtk("show", "./mine.json", "--json").json["items"]
    assert item["kind"] == "track"
    assert item["missing"] == SAID["lost"]
    assert [task["name"] for task in item["tasks"]] == ["one", "two", "three"]
    change(file, lost=[])
    assert mtk("show", "mine.json").out.splitlines()[-1] == "  runs here        yes"


def test_files_are_listed_alone_or_beside_others(mtk, file):
    alone = mtk("tracks", "list", "mine.json").out
    assert [line.split()[0] for line in alone.splitlines()] == ["track", "mine"]
    assert "no: base: nowhere; expert of one: nowhere either" in alone
    both = mtk("tracks", "list", "toy", "mine.json", "--json").json["tracks"]
    assert [track["name"] for track in both] == ["toy", "mine"]
    assert [track["runs_here"] for track in both] == [True, False]
    assert both[1]["licence"] == SAID["licence"]
    assert "mine" not in mtk("tracks", "list").out
    cells = mtk("list-tasks", "--track", "mine.json").out
    assert "mine: A track of mine (1 held-in" in cells
    assert [line.split()[0] for line in cells.splitlines()[-3:]] == [
        "one",
        "two",
        "three",
    ]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("show", "broken.json"), "no JSON"),
        (("tracks", "list", "broken.json"), "no JSON"),
        (("list-tasks", "--track", "broken.json"), "no JSON"),
        (("show", "gone.json"), "there is no track file gone.json"),
        (("tracks", "list", "gone.json"), "there is no track file gone.json"),
        (("show", "other.toml"), "no installed plugin reads other.toml as a track"),
        (("show", "metric.json"), "cell 'one': no metric named 'acuracy'"),
        (("tracks", "prepare", "mine.json", "--root", "."), "nothing to prepare"),
        (("tracks", "list", "tyo"), "did you mean 'toy'"),
    ],
)
def test_a_mistake_is_said_in_a_few_lines(mtk, file, command, words):
    (file.parent / "broken.json").write_text("{")
    (file.parent / "other.toml").touch()
    slip = [{"name": "one", "held_in": True, "metrics": ["acuracy"]}]
    (file.parent / "metric.json").write_text(json.dumps(SAID | {"tasks": slip}))
    done = mtk(*command)
    assert (done.code, done.out) == (2, "")
    lines = [line for line in done.err.splitlines() if "starting" not in line]
    assert 1 <= len(lines) <= 3
    assert words in done.err


def test_a_method_is_found_though_a_file_has_its_name(mtk, file):
    (file.parent / "toy_mean").touch()
    assert "toy_mean (method)" in mtk("show", "toy_mean").out


@pytest.mark.parametrize("columns", [60, 80, 120, 400])
def test_on_a_terminal_everything_about_a_track_is_there(
    file, capsys, monkeypatch, columns
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    cli.main(["tracks", "list", "mine.json"], standalone_mode=False)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(len(line) <= columns for line in text.splitlines())
    words = text.split()
    for said in (SAID["setting"], SAID["base"], SAID["source"], SAID["licence"]):
        for word in set(said.split()):
            assert words.count(word) >= said.split().count(word), (word, text)
    for phrase in ("base: nowhere", "nowhere either"):
        assert phrase in " ".join(words)
