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
# One process for all commands: torch is imported once.
CHILD = """
import json, runpy, sys
from pathlib import Path
from click.testing import CliRunner
from mtk._torchvision import ensure_importable
from mtk_cli.main import cli

ensure_importable()
for program, *args in json.loads(sys.stdin.read()):
    if program == "append":
        with Path(args[0]).open("a") as file:
            file.write(args[1])
    elif program == "python":
        runpy.run_path(args[0])
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
    ):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 2, done.output
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if "starting" not in line]
        assert 1 <= len(lines) <= 3
        if command[0] != "bench":  # core words it a little differently
            assert words in done.stderr.replace("\n", " ")
        assert not (tmp_path / "mtk-results").exists()
