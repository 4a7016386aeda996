"""The user's folder of data and weights: noted, looked through, and what is made in it."""

from __future__ import annotations

import pytest

from mtk import roots, training
from mtk.errors import UsageError


def test_a_root_is_known_as_long_as_it_is_there(tmp_path):
    cache, root = tmp_path / "cache", tmp_path / "root"
    assert roots.known_root(cache) is None
    with pytest.raises(UsageError, match="mtk tracks prepare name --root DIR"):
        roots.need_root(cache, "name")
    root.mkdir()
    roots.note_root(cache, root)
    assert roots.known_root(cache) == roots.need_root(cache, "name") == root
    root.rmdir()
    assert roots.known_root(cache) is None


@pytest.mark.parametrize("text", ["", "[]", '{"root": 3}', "{}"])
def test_a_damaged_note_is_no_root(tmp_path, text):
    roots.note_root(tmp_path, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert roots.known_root(tmp_path) is None


def test_what_is_there_needs_nothing_done():
    found = roots.part("a", "data", there=True, todo="get it", ready=True)
    assert (found["todo"], found["ready"]) == ("", False)


def parts(*there):
    return [
        roots.part(f"p{i}", "data", there=yes, todo=f"get p{i}")
        for i, yes in enumerate(there)
    ]


def test_missing_parts_are_named_shortly(tmp_path):
    roots.need_all(parts(True, True), "name", tmp_path)
    with pytest.raises(UsageError, match=r"4 parts are missing: p0, p2, p3, \.\.\."):
        roots.need_all(parts(False, True, False, False, False), "name", tmp_path)
    assert roots.lacking(parts(False, True), "name") == ["get p0"]
    assert roots.lacking(parts(*[False] * 5), "name") == [
        "get p0",
        "4 more, as mtk tracks prepare name --root DIR says",
    ]
    options = roots.words(2, {"size": 3, "b": True, "a": "x"}, {"size": 3})
    assert options == " --seed 2 --option a=x --option b=true"
    assert roots.lacking(None, "name", options)[0].endswith(options)
    assert roots.words(0, {"size": 3}, {"size": 3}) == ""
    (*_, last) = roots.lacking(parts(*[False] * 5), "name", options)
    assert "--root DIR --seed 2 --option a=x" in last
    with pytest.raises(UsageError, match=f"--root {tmp_path} --seed 2 --option"):
        roots.need_all(parts(False), "name", tmp_path, options)
    assert "--root DIR" in roots.lacking(None, "name")[0]


def test_packages_that_are_not_installed_are_named():
    assert roots.package_part(["json"], "x")["there"]
    lost = roots.package_part(["json", "no_such_package"], "x[y]")
    assert not lost["there"]
    assert "no_such_package" in lost["note"]
    assert lost["todo"] == 'pip install "x[y]"'


def test_a_model_is_not_made_begun_or_there(tmp_path):
    def look(*, ready=True):
        return roots.model_part(place, "e", kind="expert", ready=ready, steps=9)

    place = roots.made(tmp_path, "name-1", 3, "e")
    assert place == tmp_path / "mtk" / "name-1" / "seed3" / "e"
    assert look()["note"] == "not made"
    assert "missing above" in look(ready=False)["todo"]
    place.parent.mkdir(parents=True)
    train(roots.training_state(place))
    (place.parent / f".{roots.training_state(place).name}.ab.partial").touch()
    assert look()["note"].startswith("begun, 4 of at most 9 steps; .e.training")
    roots.finish(place, lambda work: (work / "w").write_text("1"), {"made": "e"})
    assert look()["there"]
    assert not roots.training_state(place).exists()


def test_a_model_of_another_base_does_not_count(tmp_path):
    base, place = tmp_path / "base", tmp_path / "e"
    base.write_bytes(bytes(9_000_000))
    one = roots.sampled_hash([base])
    roots.finish(place, lambda work: (work / "w").write_text("1"), {"base": one})

    def look(base):
        return roots.model_part(place, "e", kind="expert", ready=True, base=base)

    assert look(one)["there"]
    assert look("")["there"]
    base.write_bytes(bytes(4_000_000) + bytes([1]) * 1_000_000 + bytes(4_000_000))
    other = roots.sampled_hash([base])
    assert other != one
    assert look(other)["note"] == "made from another base"
    assert not look(other)["ready"]


def train(state):
    import torch

    weight = torch.nn.Parameter(torch.ones(2))
    regime = training.Regime(rate=0.1, batch=1, steps=4, every=2)
    training.fit({"w": weight}, lambda _: weight.square().sum(), regime, state=state)


def test_a_changed_folder_is_never_replaced(tmp_path):
    place = tmp_path / "e"
    roots.finish(place, lambda work: (work / "w").write_text("1"), {})
    (place / "w").write_text("22")
    assert not roots.is_made(place)
    with pytest.raises(UsageError, match="Remove it"):
        roots.finish(place, lambda work: (work / "w").write_text("3"), {})
    assert (place / "w").read_text() == "22"
