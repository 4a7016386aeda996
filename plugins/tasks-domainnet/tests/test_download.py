"""Downloads: what happens to rows once they are here, and to libraries that are not."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from mtk import fetching
from mtk.errors import UsageError
from mtk_tasks_domainnet import download
from mtk_tasks_domainnet.clip_track import DomainNetClip


def test_images_go_where_the_lists_say_and_only_once(tmp_path, quiet):
    wanted = {"a_1.jpg": "real/nail/a_1.jpg", "b_2.png": "clipart/axe/b_2.png"}
    rows = [
        {"image": {"path": f"somewhere/{name}", "bytes": name.encode()}}
        for name in wanted
    ]
    assert download.put_images(tmp_path, wanted, rows, quiet) == 2
    assert (tmp_path / "clipart/axe/b_2.png").read_bytes() == b"b_2.png"
    assert download.put_images(tmp_path, wanted, rows, quiet) == 0
    assert not list(tmp_path.rglob("*.partial"))


def test_rows_that_no_list_names_stop_the_download(tmp_path, quiet):
    for path in ("../../x.jpg", None, "c.jpg"):
        rows = [{"image": {"path": path, "bytes": b""}}]
        with pytest.raises(UsageError, match="no list names"):
            download.put_images(tmp_path, {"a.jpg": "real/nail/a.jpg"}, rows, quiet)
    assert not list(tmp_path.iterdir())


def test_equal_file_names_are_not_guessed(tmp_path, root, mini, quiet):
    lines = (root / "real_train.txt").read_text().replace("real_train", "clipart_train")
    (root / "real_train.txt").write_text(lines.replace(".jpg", ".png"))
    with pytest.raises(UsageError, match="name of two images"):
        download.images(root, mini, quiet)


def test_a_library_that_is_not_installed_is_named(root, mini, quiet, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    track = DomainNetClip(cache=root, seed=0, options={}, grid=mini)
    with pytest.raises(UsageError, match=r"mtk-tasks-domainnet\[download\]"):
        track.fetch(root, "images/real", quiet)
    with pytest.raises(UsageError, match="by hand"):
        track.fetch(root, "package", quiet)


@pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs huggingface_hub"
)
def test_what_the_hub_does_not_give_leaves_nothing(tmp_path, mini, quiet, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    track = DomainNetClip(cache=tmp_path, seed=0, options={}, grid=mini)
    for name in ("weights", "lists"):
        with pytest.raises(UsageError, match="could not be had"):
            track.fetch(tmp_path, name, quiet)
    assert not list(tmp_path.iterdir())


def test_a_host_that_does_not_answer_is_named_once(tmp_path, quiet, mini, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching, "host", fetching.Host())
    track = DomainNetClip(cache=tmp_path, seed=0, options={}, grid=mini)
    with pytest.raises(UsageError) as first:
        track.fetch(tmp_path, "weights", quiet)
    assert str(first.value).startswith("http://127.0.0.1:1 could not be reached: ")
    assert "Nothing was lost" in str(first.value)
    for name in ("weights", "lists"):
        with pytest.raises(UsageError) as later:
            track.fetch(tmp_path, name, quiet)
        said = "not tried, for the same reason"
        assert str(later.value) == said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
