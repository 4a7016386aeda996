"""The commands that show what is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtk.loading import import_file

ONE_FILE = """
import mtk

@mtk.hookimpl
def mtk_methods():
    yield mtk.Method(name="filed", target=merge, summary="From a file", paper="none")

def merge(*, experts):
    return sum(experts) / len(experts)
"""


@pytest.mark.parametrize(
    ("command", "key", "names"),
    [
        (
            "list-methods",
            "methods",
            ["toy_broken", "toy_fisher", "toy_many", "toy_masks", "toy_mean"],
        ),
        ("list-tasks", "tracks", ["toy"]),
        ("list-adapters", "adapters", ["toy"]),
        ("list-metrics", "metrics", ["accuracy"]),
    ],
)
def test_lists(mtk, command, key, names):
    text, data = mtk(command), mtk(command, "--json").json
    assert text.code == 0
    assert data["schema"] == 1
    assert [item["name"] for item in data[key]] == names
    assert data[key][0]["distribution"] == "mtk-toy"
    assert all(name in text.out for name in names)
    assert text.err == ""


def test_methods_say_what_they_need(mtk):
    lines = mtk("list-methods").out.splitlines()
    row = next(line for line in lines if line.startswith("toy_many"))
    assert "base, fisher" in row
    assert row.endswith("mtk-toy 0.3.0")


def test_piped_tables_are_neither_cut_nor_coloured(mtk):
    text = mtk("list-methods").out
    assert "\x1b" not in text
    assert "…" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert len(text.splitlines()) == 6


def test_colour_can_be_forced_and_forbidden(process):
    assert "\x1b[" in process("list-methods", FORCE_COLOR="1").out
    forced = process("plugins", FORCE_COLOR="1", NO_COLOR="1").out
    assert "\x1b[31m" not in forced


def test_the_cells_of_a_track(mtk):
    text = mtk("list-tasks", "--track", "toy").out
    assert "toy: Points in turned planes (3 held-in and 2 other cells" in text
    assert "generalization" in text
    tasks = mtk("list-tasks", "--json").json["tracks"][0]["tasks"]
    assert [task["held_in"] for task in tasks] == [True] * 3 + [False] * 2


def test_nothing_installed(mtk, monkeypatch):
    monkeypatch.setenv("MTK_PLUGINS", "")
    for command in ("list-methods", "list-tasks", "list-adapters", "list-metrics"):
        outcome = mtk(command)
        assert (outcome.code, outcome.out) == (0, "")
        assert "installed" in outcome.err
    assert "no plugins" in mtk("plugins").err
    assert mtk("check", "--all").code == 3


def test_show_a_method(mtk):
    text = mtk("show", "toy-mean").out
    for words in ("toy_mean (method)", "arXiv:0000.00000", "mtk-toy 0.3.0", "0 .. 2"):
        assert words in text
    assert "0.5, 1" in text
    assert "symmetric" in text
    item = mtk("show", "mtk-toy:toy_mean", "--json").json["items"][0]
    assert item["kind"] == "method"
    assert item["params"][0]["grid"] == [0.5, 1.0]
    assert item["target"] == "toy_maths:mean"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("accuracy", "0 .. 1"),
        ("toy", "--option KEY=VALUE"),
        ("toy", "toy (adapter)"),
        ("toy_many", "9 or more"),
        ("toy_masks", "Parameters: none"),
    ],
)
def test_show_other_kinds(mtk, name, words):
    assert words in mtk("show", name).out


def test_show_a_file(mtk, toy):
    (toy / "shown.py").write_text(ONE_FILE)
    assert "filed (method)" in mtk("show", "./shown.py").out
    item = mtk("show", "./shown.py", "--json").json["items"][0]
    assert item["target"].endswith(":merge")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("broken.py", "import gone_for_good", "gone_for_good"),
        ("empty.py", "", "offers no method"),
        (
            "slip.py",
            "import mtk\n@mtk.hookimpl\ndef mtk_method(): ...\n",
            "mtk_methods",
        ),
    ],
)
def test_a_file_that_offers_nothing_is_a_usage_error(mtk, toy, name, text, words):
    (toy / name).write_text(text)
    outcome = mtk("show", f"./{name}")
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) <= 3


def test_plugins(mtk):
    text = mtk("plugins").out
    assert "mtk-toy" in text
    assert "5 methods, 1 track, 1 adapter, 1 metric" in text
    assert "import s" in mtk("plugins", "--timings").out
    plugin = mtk("plugins", "--json").json["plugins"][0]
    assert plugin["offers"]["tracks"] == ["toy"]


def test_broken_plugins_are_named_and_stop_nothing(mtk, tmp_path, monkeypatch):
    site = tmp_path / "more"
    conftest = import_file(Path(__file__).with_name("conftest.py"))
    conftest.install(site, name="mtk-bad", module="gone_for_good")
    conftest.install(site, name="mtk-twin", module="twin_plugin")
    (site / "twin_plugin.py").write_text(ONE_FILE.replace("filed", "toy_mean"))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MTK_PLUGINS", "mtk-toy,mtk-bad,mtk-twin")
    text = mtk("plugins").out
    assert "problem: mtk-bad 0.3.0 (toy): import failed" in text
    assert "ambiguous: 'toy_mean'; write mtk-toy:toy_mean or mtk-twin:toy_mean" in text
    listed = mtk("list-methods")
    assert "mtk-twin:toy_mean" in listed.out
    assert "mtk plugins shows more" in listed.err
    assert mtk("plugins", "--json").json["problems"][0]["distribution"] == "mtk-bad"
    refused = mtk("show", "toy_mean")
    assert refused.code == 2
    assert "mtk-twin:toy_mean" in refused.err
