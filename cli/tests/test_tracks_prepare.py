"""``mtk tracks prepare``, with a small track that keeps its things in a folder."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from mtk.errors import UnknownName, UsageError
from mtk_cli.commands import _tracks_prepare as tracks_prepare
from mtk_cli.exits import ExitCode

PLUGIN = '''
"""A track with data, two experts and a multitask model, all of them text files."""
import json
from pathlib import Path
import mtk

CELLS = ("red", "blue")


class Live:
    def __init__(self, *, cache, seed, options):
        self.cache, self.seed, self.options = Path(cache), seed, options

    def parts(self, root):
        data = (root / "data").is_file()
        found = [dict(name="data", kind="data", there=data, ready=False,
                      note="a file" if data else "no file",
                      todo="" if data else "put it there")]
        for name in (*CELLS, "multitask"):
            there = self.place(root, name).is_file()
            found.append(dict(
                name=name, kind="multitask" if name == "multitask" else "expert",
                there=there, ready=data and not there, note="",
                todo="" if there else "train it"))
        return found

    def place(self, root, name):
        return root / f"{name}-{self.seed}-{self.options['size']}"

    def fetch(self, root, name, report):
        (root / name).write_text("fetched")

    def make(self, root, name, report, *, device="cpu"):
        report(f"making {name}", 0.5)
        if (root / f"broken-{name}").exists():
            raise mtk.errors.UsageError(f"{name} cannot be made")
        self.place(root, name).write_text(f"made on {device}")

    def adopt(self, root, name, source):
        self.place(root, name).write_text(f"imported {source.name}")


class Embedded:
    def __init__(self, *, cache, seed, options):
        pass


@mtk.hookimpl
def mtk_tasks():
    tasks = tuple(mtk.Task(name=n, held_in=True) for n in CELLS)
    common = dict(summary="", setting="", version="1", tasks=tasks)
    yield mtk.Track(name="far", target="paper_plugin:Live", embedded=False,
                    options=(mtk.Param("size", 3),), **common)
    yield mtk.Track(name="near", target="paper_plugin:Embedded", **common)
'''


@pytest.fixture
def root(toy, tmp_path, monkeypatch):
    """The track is installed, and its root is an empty folder."""
    site = tmp_path / "paper-site"
    site.mkdir()
    (site / "paper_plugin.py").write_text(PLUGIN)
    info = site / "mtk_paper-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mtk-paper\nVersion: 0.3.0\n"
    )
    (info / "entry_points.txt").write_text("[mtk]\npaper = paper_plugin\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MTK_PLUGINS", "mtk-paper")
    monkeypatch.delitem(sys.modules, "paper_plugin", raising=False)
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def prepare(root, *args, name="far"):
    result = CliRunner().invoke(
        tracks_prepare.command,
        [name, "--root", str(root), *map(str, args)],
        standalone_mode=False,
    )
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stdout, result.stderr


def files(root):
    return sorted(path.name for path in root.iterdir())


def test_what_is_missing_is_said_and_nothing_is_made(root, tmp_path):
    code, out, err = prepare(root, "--json")
    found = json.loads(out)
    assert code == ExitCode.NOTHING
    assert not found["ready"]
    assert [p["name"] for p in found["parts"]] == ["data", "red", "blue", "multitask"]
    assert files(root) == []
    noted = tmp_path / "cache" / "tracks" / "far-1" / "root.json"
    assert json.loads(noted.read_text()) == {"root": str(root)}
    code, out, err = prepare(root)
    assert "put it there" in out
    assert "4 of 4 parts are missing" in err


def test_a_dry_run_makes_nothing(root):
    (root / "data").touch()
    code, out, _ = prepare(root, "--dry-run")
    assert code == ExitCode.NOTHING
    assert out.count("can be made") == 3
    assert files(root) == ["data"]
    with pytest.raises(UsageError, match="looks only"):
        prepare(root, "--dry-run", "--download")


def test_only_a_real_run_notes_the_folder(root, tmp_path):
    (root / "data").touch()
    noted = tmp_path / "cache" / "tracks" / "far-1" / "root.json"
    prepare(root, "--dry-run")
    assert not noted.exists()
    prepare(root)
    _, _, err = prepare(root, "--dry-run")
    assert "mtk bench --track far" in err
    other = tmp_path / "other"
    other.mkdir()
    for name in files(root):
        (other / name).touch()
    _, _, err = prepare(other, "--dry-run")
    assert "without --dry-run the folder is noted" in err
    assert json.loads(noted.read_text()) == {"root": str(root)}


def test_a_device_that_is_not_there_is_refused_first(root):
    with pytest.raises(UsageError, match="no device 'nonsense'"):
        prepare(root, "--device", "nonsense")
    assert files(root) == []


def test_everything_is_made_and_then_left_alone(root):
    (root / "data").touch()
    code, _, err = prepare(root, "--device", "cpu:0", "--option", "size=5")
    assert code == ExitCode.DONE
    assert "mtk bench --track far --option size=5" in err
    assert files(root) == ["blue-0-5", "data", "multitask-0-5", "red-0-5"]
    assert (root / "red-0-5").read_text() == "made on cpu:0"
    before = (root / "red-0-5").stat().st_mtime_ns
    assert prepare(root, "--option", "size=5")[0] == ExitCode.DONE
    assert (root / "red-0-5").stat().st_mtime_ns == before


def test_only_makes_what_is_named(root):
    (root / "data").touch()
    code, _, err = prepare(root, "--only", "blue", "--seed", 2)
    assert code == ExitCode.DONE
    assert files(root) == ["blue-2-3", "data"]
    assert "2 of 4 parts are missing" in err
    (
        root / "data"
    ).unlink()  # what the named expert needed, and has no need of any more
    assert prepare(root, "--only", "blue", "--seed", 2)[0] == ExitCode.DONE
    assert prepare(root, "--only", "red", "--seed", 2)[0] == ExitCode.NOTHING
    with pytest.raises(UsageError, match=r"no expert named 'bleu'.*blue"):
        prepare(root, "--only", "bleu")


def test_nothing_is_downloaded_unasked(root):
    prepare(root)
    assert files(root) == []
    code, _, _ = prepare(root, "--download")
    assert code == ExitCode.DONE
    assert (root / "data").read_text() == "fetched"
    assert len(files(root)) == 4


def test_experts_are_imported_where_they_are_missing(root, tmp_path):
    (root / "data").touch()
    source = tmp_path / "experts"
    (source / "red").mkdir(parents=True)
    (source / "blue.safetensors").touch()
    (root / "blue-0-3").write_text("mine")
    code, _, _ = prepare(root, "--import-experts", source)
    assert code == ExitCode.DONE
    assert (root / "red-0-3").read_text() == "imported red"
    assert (root / "blue-0-3").read_text() == "mine"
    assert (root / "multitask-0-3").read_text() == "made on cpu"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="none of the experts"):
        prepare(root, "--import-experts", empty)


def test_one_failure_stops_none_of_the_rest(root):
    (root / "data").touch()
    (root / "broken-red").touch()
    code, out, _ = prepare(root, "--json")
    found = json.loads(out)
    assert code == ExitCode.FAILED
    assert found["failures"] == {"red": "red cannot be made"}
    assert (root / "blue-0-3").exists()
    assert (root / "multitask-0-3").exists()


def test_wrong_requests_are_refused(root):
    with pytest.raises(UsageError, match="makes its models on first use"):
        prepare(root, name="near")
    with pytest.raises(UnknownName, match="far"):
        prepare(root, name="fra")
    with pytest.raises(UsageError, match="does not exist"):
        prepare(root / "nowhere")
    with pytest.raises(UsageError, match="sise"):
        prepare(root, "--option", "sise=5")
