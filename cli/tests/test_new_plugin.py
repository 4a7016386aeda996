"""``mtk new-plugin`` and the template."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import mtk_cli
from mtk_cli.commands.new_plugin import render_template

CONTRIB = Path(__file__).parents[2] / "contrib" / "template"


def test_the_template_in_contrib_is_the_rendered_one():
    if not CONTRIB.is_dir():
        pytest.skip("outside the repository")
    files = render_template("my-merge")
    for name, text in files.items():
        assert (CONTRIB / name).read_text() == text, f"{name}: mtk new-plugin my-merge"
    sources = {p.name for p in CONTRIB.iterdir() if p.suffix in (".py", ".toml", ".md")}
    assert sources == set(files)


def test_the_files_are_small_and_parse():
    files = render_template("my-merge")
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == "mtk-my-merge"
    assert project["project"]["entry-points"]["mtk"] == {"my-merge": "mtk_my_merge"}
    compile(files["mtk_my_merge.py"], "mtk_my_merge.py", "exec")
    assert len(files["pyproject.toml"].splitlines()) <= 20
    assert len(files["mtk_my_merge.py"].splitlines()) <= 24
    assert "$" not in "".join(files.values())


def test_it_asks_for_the_core_that_the_command_asks_for():
    wanted = tomllib.loads(render_template("x")["pyproject.toml"])["project"]
    ours = metadata.requires("mtk-cli")
    core = next(text for text in ours if text.startswith("mtk-core"))
    assert set(core.removeprefix("mtk-core").split(",")) == set(
        wanted["dependencies"][0].removeprefix("mtk-core").split(",")
    )
    assert mtk_cli.__version__ == metadata.version("mtk-cli")


def test_a_new_plugin_can_be_checked_at_once(mtk, toy):
    outcome = mtk("new-plugin", "fresh_idea")
    assert outcome.code == 0
    assert "mtk check fresh_idea" in outcome.err
    made = sorted(p.name for p in (toy / "mtk-fresh-idea").iterdir())
    assert made == ["README.md", "mtk_fresh_idea.py", "pyproject.toml"]
    checked = mtk("check", "mtk-fresh-idea/mtk_fresh_idea.py", "-q")
    assert checked.code == 0, checked.out


def test_where_it_goes(mtk, toy):
    data = mtk("new-plugin", "mtk-there", "--output", "here", "--json", "-q").json
    assert data["folder"] == "here"
    assert (toy / "here" / "mtk_there.py").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toy"], "is installed already"),
        (["a--b"], "no name for a plugin"),
        (["../up"], "no name for a plugin"),
        (["Große"], "no name for a plugin"),
        (["fine", "--output", "there"], "there exists"),
        (["fine", "--output", "not/there"], "does not exist"),
    ],
)
def test_refusals(mtk, toy, arguments, words):
    (toy / "there").mkdir()
    outcome = mtk("new-plugin", *arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert [p.name for p in toy.iterdir()] == ["there"]
