"""Folders of a track's cache: whole or not there, made once, made again when damaged."""

from __future__ import annotations

import contextlib
import json
import os
import time

import pytest
import torch

from mtk import making


def filled(work, text="x"):
    (work / "model.safetensors").write_text(text)
    return {"by": text}


def test_a_folder_is_made_once_and_says_how(tmp_path):
    calls = []

    def make(work):
        calls.append(work)
        return filled(work)

    place = tmp_path / "a" / "b"
    for _ in range(2):
        assert making.get_or_make(place, make) == place
    assert len(calls) == 1
    manifest = json.loads((place / "manifest.json").read_text())
    assert (manifest["by"], manifest["mtk"]) == ("x", "track")
    assert list(manifest["outputs"]) == ["model.safetensors"]


@pytest.mark.parametrize("damage", ["other bytes", "removed", "no manifest"])
def test_a_damaged_folder_is_made_again(tmp_path, damage):
    place = making.get_or_make(tmp_path / "m", filled)
    if damage == "other bytes":
        (place / "model.safetensors").write_text("y")
    else:
        name = "model.safetensors" if damage == "removed" else "manifest.json"
        (place / name).unlink()
    assert not making.is_whole(place)
    making.get_or_make(place, filled)
    assert (place / "model.safetensors").read_text() == "x"


def test_a_failure_leaves_nothing(tmp_path):
    def fail(work):
        filled(work)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        making.get_or_make(tmp_path / "m", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_a_race_takes_what_the_winner_made(tmp_path):
    place = tmp_path / "m"

    def slow(work):
        making.get_or_make(place, lambda inner: filled(inner, "winner"))
        return filled(work, "loser")

    making.get_or_make(place, slow)
    assert (place / "model.safetensors").read_text() == "winner"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_killed_processes_left_long_ago_is_removed(tmp_path):
    place = tmp_path / "m"
    old, new = (tmp_path / f"m.partial-{digits}" for digits in ("0" * 8, "1" * 8))
    for folder in (old, new):
        folder.mkdir()
    day_ago = time.time() - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    making.get_or_make(place, filled)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", new.name]


def test_models_are_made_in_order_once_and_with_seeds_of_their_own(tmp_path):
    calls, told = [], []

    def base(folder):
        (folder / "w").write_text("base")

    def train(cells, seed, folder):
        assert torch.get_num_threads() == 1
        calls.append((list(cells), seed))
        (folder / "w").write_text(" ".join(cells))

    for seed in (2, 2, 3):
        models = making.make_models(
            tmp_path,
            ["a", "b"],
            seed=seed,
            base=base,
            train=train,
            report=lambda _, share: told.append(share),
            variant="x-",
        )
    trained = [["a"], ["b"], ["a", "b"]]
    seeds = [2000, 2001, 2002, 3000, 3001, 3002]
    assert calls == list(zip(trained * 2, seeds, strict=True))
    assert told == [0.0, 0.25, 0.5, 1.0] * 3
    places = [models["base"], *models["experts"], models["multitask"]]
    assert [(place / "w").read_text() for place in places] == ["base", "a", "b", "a b"]
    assert places[1] == tmp_path / "x-seed3" / "a"


def test_the_fingerprint_changes_with_every_file_and_word(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text("a")
    two.write_text("b")
    found = {
        making.fingerprint([one]),
        making.fingerprint([one, two]),
        making.fingerprint([one], "2.18"),
    }
    one.write_text("c")
    found.add(making.fingerprint([one]))
    assert len(found) == 4
    assert all(len(digits) == 12 for digits in found)


def test_one_thread_for_a_block_only():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with making.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with contextlib.suppress(KeyError), making.one_thread():
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
