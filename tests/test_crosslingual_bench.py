"""The track crosslingual-mt5 with what other distributions bring: a whole benchmark of
it on small data and a tiny mT5, and its base from a small Hub on this machine.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import mtk
from mtk import roots
from mtk.loading import Provided, load
from mtk.models import folder_of
from mtk_tasks_crosslingual import plugin
from mtk_tasks_crosslingual.cells import CELLS, HELD_IN, MULTITASK
from mtk_tasks_crosslingual.download import BASE_COMMIT, BASE_REPO
from mtk_tasks_crosslingual.track import CrosslingualMt5

HERE = Path(__file__).parent


def module_of(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


small = module_of(
    "crosslingual_small_data",
    HERE.parent / "plugins" / "tasks-crosslingual" / "tests" / "conftest.py",
)


def mean(*, experts):
    """The plain mean."""
    return sum(experts) / len(experts)


def with_statistics(*, experts, gram, fisher, info):
    """The plain mean, of a method that asks for everything."""
    if info.role in ("linear", "head"):
        assert all(found is not None for found in gram)
    assert all(found is not None for found in fisher)
    return sum(experts) / len(experts)


METHODS = (
    mtk.Method(name="mean", target=mean, summary="The plain mean"),
    mtk.Method(
        name="with_statistics",
        target=with_statistics,
        summary="The same",
        scope="tensor",
        needs=mtk.Needs(statistics=("gram", "fisher"), info=True),
        params=(
            mtk.Param(
                "estimator",
                "empirical",
                "which",
                stage="statistic",
                choices=("empirical",),
            ),
        ),
    ),
)


@pytest.fixture
def root(tmp_path):
    """A root with a base, data, and models that stand for the trained ones."""
    root = tmp_path / "root"
    small.save_base(root / "base")
    small.fill(root)
    cache = tmp_path / "cache"
    track = CrosslingualMt5(cache=cache, seed=0, options={}, cuts=small.CUTS)
    for number, name in enumerate((*HELD_IN, MULTITASK)):
        module = track.build(root / "base")
        torch.manual_seed(number)
        for parameter in module.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        module.save_pretrained(tmp_path / name)
        track.adopt(root, name, tmp_path / name)
    return root


def test_a_bench(root, tmp_path):
    registry = load()
    registry.methods[:] = [Provided(m, registry.plugins[0]) for m in METHODS]
    (declared,) = plugin.mtk_tasks()
    target = partial(CrosslingualMt5, cuts=small.CUTS, regime=small.REGIME)
    track = replace(declared, target=target)
    cache = folder_of(tmp_path / "models", track)
    roots.note_root(cache, root)
    result = mtk.bench(
        track=track,
        registry=registry,
        results=tmp_path / "results",
        cache=tmp_path / "models",
    )
    assert not result.failures, result.failures
    assert not result.plan.skipped
    records = {record["name"]: record for record in result.records}
    assert set(records["mean"]["scores"]) == set(CELLS)
    assert records["with_statistics"]["scores"] == records["mean"]["scores"]
    assert len(result.notes) == 3
    assert "answerability-ko 50.0 (yes)" in result.notes[2]
    found = records["mean"]["metrics"]["qa-th"]
    assert set(found) == {"squad_mean", "squad_em", "squad_f1"}


@pytest.fixture
def hub(tmp_path):
    """A Hub that has the base as it was seen there, with a pickle beside."""
    stand_in = module_of("hub_stand_in", HERE / "hub_stand_in.py")
    server = stand_in.Hub()
    small.save_base(tmp_path / "original")
    files = {p.name: p.read_bytes() for p in (tmp_path / "original").iterdir()}
    more = {"README.md": b"words", "pytorch_model.bin": b"pickle", "spiece.model": b"s"}
    repo = server.repos[BASE_REPO] = stand_in.Repo()
    repo.commits[BASE_COMMIT] = files | more
    repo.branches["main"] = repo.commit({"config.json": b"another"})
    yield server, files | {"spiece.model": b"s"}
    server.close()


FETCH = """
import sys
from pathlib import Path
from mtk.errors import UsageError
from mtk_tasks_crosslingual.track import CrosslingualMt5
root = Path(sys.argv[1])
track = CrosslingualMt5(cache=root / "cache", seed=0, options={})
try:
    track.fetch(root, "base", lambda text, share: print(text))
except UsageError as error:
    sys.exit(f"refused: {error}")
(base,) = (p for p in track.parts(root) if p["name"] == "base")
assert base["there"], base
"""


def fetch(root, address):
    environment = {n: v for n, v in os.environ.items() if not n.startswith("HF_")} | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(root / "home"),
        "HF_HUB_DISABLE_XET": "1",  # the stand-in has large files by LFS only
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", FETCH, str(root)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_the_base_is_downloaded_whole_and_without_pickles(hub, tmp_path):
    server, wanted = hub
    root = tmp_path / "user"
    root.mkdir()
    done = fetch(root, server.address)
    assert done.returncode == 0, done.stderr
    found = {p.name: p.read_bytes() for p in (root / "base").iterdir()}
    assert found == wanted
    assert not [line for line in server.asked() if "pytorch_model" in line]


def test_a_base_that_cannot_be_had_leaves_nothing(hub, tmp_path):
    server, _ = hub
    server.repos.clear()
    root = tmp_path / "user"
    root.mkdir()
    done = fetch(root, server.address)
    assert done.returncode == 1
    message = done.stderr.split("refused: ")[1]
    assert BASE_REPO in message
    assert f"Put the model into {root / 'base'} by hand" in message
    assert sorted(p.name for p in root.iterdir() if p.name != "home") == []
