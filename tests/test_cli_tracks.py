"""Track files on the command line, as the how-to tells it: its files, then its commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs/how-to/bring-your-own-track.md"
FILE = re.compile(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
APPENDED = re.compile(r"^Append [^\n]*\n\n```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
# One process for all commands of mtk: torch is imported once.
CHILD = """
import json, subprocess, sys
from pathlib import Path
from click.testing import CliRunner
from mtk_cli.main import cli

for program, *args in json.loads(sys.stdin.read()):
    if program == "append":
        with Path(args[0]).open("a") as file:
            file.write(args[1])
    elif program == "python":
        subprocess.run([sys.executable, *args], check=True)
    else:
        done = CliRunner().invoke(cli, args)
        found = {"code": done.exit_code, "out": done.stdout, "err": done.stderr}
        print("RESULT " + json.dumps([args, found]))
"""


def run(folder, commands, **env):
    """Run commands one after the other; what ``mtk`` wrote and its exit codes."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", CHILD],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=300,
        env={
            **os.environ,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "MTK_CACHE": str(folder / "cache"),
            "MTK_JOBS": "0",
            "OMP_NUM_THREADS": "1",
            **env,
        },
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def write_files(folder):
    """The files of the page."""
    found = FILE.findall(PAGE.read_text())
    for name, text in found:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return {name for name, _ in found}


def commands_of(page):
    """(command, the lines shown of what it writes), in their order."""
    found = []
    for block in CONSOLE.findall(page):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((shlex.split(line[2:]), []))
            elif line.strip():
                found[-1][1].append(line)
    return found


def test_the_how_to_is_true(tmp_path):
    names = write_files(tmp_path)
    assert {"my_track.toml", "make_models.py", "tasks/my_spelling.yaml"} <= names
    page = PAGE.read_text()
    wanted = commands_of(page)
    (appended,) = APPENDED.findall(page)
    later = page.count("$ ", 0, page.index("Append one"))
    steps = [command for command, _ in wanted]
    # The last command of the first run tries every method, which takes too long here.
    steps = [
        step for step in steps if step != ["mtk", "bench", "--track", "my_track.toml"]
    ]
    steps.insert(later - 1, ["append", "my_track.toml", appended])
    said = {}
    for args, found in run(tmp_path, steps):
        said.setdefault(" ".join(args), []).append(found)
    for command, lines in wanted:
        text = " ".join(command[1:])
        if command[0] != "mtk" or text == "bench --track my_track.toml":
            continue
        found = said[text].pop(0)
        assert found["code"] == 0, found
        for line in lines:
            assert line in found["out"].splitlines(), (text, found["out"])
    assert not any(said.values())


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("base = ", "bse = ", "did you mean 'base'?"),
        ('name = "my-track"', "name = ", "not a TOML file"),
        ("exact_match", "exact_mach", "cell 'plurals': no metric named 'exact_mach'"),
        ('"rivers.jsonl"', '"river.jsonl"', "there is no file"),
        ('expert = "models/language"', "", "give expert a text"),
        ('"rivers.jsonl"', '"my_track.toml"', "my_track.toml, line 1: not JSON"),
        ('"rivers.jsonl"', '"tasks/spelling.jsonl"', "line 1: prompt is missing"),
        ('"rivers.jsonl"', '"rivers.jsonl"\nvalidation = 0.9', "no items for test"),
    ],
)
def test_a_mistake_in_the_file_is_said_in_three_lines(
    tmp_path, monkeypatch, before, after, words
):
    from click.testing import CliRunner

    from mtk_cli.main import cli

    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_track.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    for command in (
        ["show", "my_track.toml"],
        ["tracks", "list", "my_track.toml"],
        ["list-tasks", "--track", "my_track.toml"],
        ["bench", "--track", "my_track.toml"],
        ["bench", "--track", "my_track.toml", "--dry-run"],
    ):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 2, done.output
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if "starting" not in line]
        assert 1 <= len(lines) <= 3
        if command[0] != "bench":  # core words it a little differently
            assert words in done.stderr.replace("\n", " ")
        assert not (tmp_path / "mtk-results").exists()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The models of the page."""
    folder = tmp_path_factory.mktemp("page")
    write_files(folder)
    run(folder, [["python", "make_models.py"]])
    return folder / "models"


@pytest.mark.parametrize(
    ("track", "task", "words"),
    [
        (
            ('["exact_match", "chrf"]', '["joint_accuracy"]'),
            (),
            """cell 'plurals': the metric 'joint_accuracy' does not score texts
AttributeError: 'str' object has no attribute 'category'
Metrics that do: accuracy, chrf, exact_match""",
        ),
        (
            ('["exact_match", "chrf"]', '["chrf", "kid"]'),
            (),
            "cell 'plurals': the metric 'kid' does not score texts",
        ),
        (
            ('"acc", "acc_norm"', '"acc_norn"'),
            (),
            """cell 'spelling': 'acc_norn' is unknown; did you mean 'acc_norm'?
Metrics of 'my_spelling': acc, acc_norm""",
        ),
        (
            (),
            ("dataset_path: json", "dataset_path: nobody/nothing"),
            """cell 'spelling': the task 'my_spelling' could not be loaded
ConnectionError: Couldn't reach 'nobody/nothing' on the Hub (OfflineModeIsEnabled)
Its data are not on this machine; add download = true to fetch""",
        ),
        ((), ('is"', 'is {{wird}}"'), "UndefinedError: 'wird' is undefined"),
        (('["acc", ', '["acc"]\nfilter = "last" # '), (), "no filter 'last'"),
        pytest.param(
            ('task = "my_spelling"', 'task = "my_speling"'),
            (),
            "has no task 'my_speling'; did you mean 'my_spelling'?",
            marks=pytest.mark.slow,  # the harness reads its 14,000 task files
        ),
    ],
)
def test_what_a_run_needs_is_checked_before_it(tmp_path, models, track, task, words):
    """Once and not for every row of the table, with exit code 2, in three lines."""
    write_files(tmp_path)
    (tmp_path / "models").symlink_to(models)
    (appended,) = APPENDED.findall(PAGE.read_text())
    for name, change in (("my_track.toml", track), ("tasks/my_spelling.yaml", task)):
        file = tmp_path / name
        text = file.read_text() + (appended if name == "my_track.toml" else "")
        assert not change or change[0] in text
        file.write_text(text.replace(*change, 1) if change else text)
    bench = ["mtk", "bench", "--quiet", "--track", "my_track.toml"]
    for _, found in run(tmp_path, [[*bench, "--method", "average"], bench]):
        assert found["code"] == 2, found
        assert found["out"] == ""
        assert words in found["err"]
        assert 1 <= len(found["err"].splitlines()) <= 3
        assert "Traceback" not in found["err"]
    assert not list((tmp_path / "mtk-results").rglob("*.json"))
