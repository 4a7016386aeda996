"""What `prepare` checks and says, and what belongs to another base."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtk import roots
from mtk.errors import CheckpointError, UsageError
from mtk.training import Regime
from mtk_tasks_crosslingual.cells import CELLS, HELD_IN, MULTITASK, RANKED, parse
from mtk_tasks_crosslingual.track import CrosslingualMt5

LONGER = Regime(rate=1e-2, batch=4, steps=3, every=1, patience=9, half=False)


def quiet(*_):
    """Report to nobody."""


@pytest.fixture
def root(filled, tmp_path):
    """A root of its own, in which models can be made."""
    return shutil.copytree(filled, tmp_path / "root")


@pytest.fixture
def track(opened, root):
    return again(opened, root)


def again(opened, root, seed=0, regime=LONGER, **options):
    roots.note_root(opened.cache, root)
    return CrosslingualMt5(
        cache=opened.cache,
        seed=seed,
        options=options,
        cuts=opened._cuts,
        regime=regime,
    )


def part(track, root, name):
    (found,) = (p for p in track.parts(root) if p["name"] == name)
    assert bool(found["todo"]) != found["there"]
    return found


def begin(track, root, name):
    """What a run leaves behind that is killed after its first step."""

    def kill(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track.make(root, name, kill)
    assert roots.training_state(track.place(root, name)).is_file()


def replace_base(root):
    file = root / "base" / "model.safetensors"
    weights = {n: t * 1.1 for n, t in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def replace_rows(root, name, field):
    file = root / "data" / name
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [json.dumps(r | {field: r[field] + " indeed"}) + "\n" for r in rows]
    file.write_text("".join(lines))


@pytest.mark.parametrize("what", ["base", "train", "validation", "nothing"])
def test_an_unfinished_run_of_something_else_begins_again(track, root, what):
    begin(track, root, "nli-ar")
    if what == "base":
        replace_base(root)
    elif what != "nothing":
        replace_rows(root, f"xnli.ar/{what}.jsonl", "premise")
    told = []
    track.make(root, "nli-ar", lambda text, _: told.append(text))
    assert ("step 1," in told[0]) == (what != "nothing")


def test_finished_models_of_another_base_are_not_handed_out(track, root):
    track.make(root, "nli-ar", quiet)
    for name in (*HELD_IN, MULTITASK):
        if name != "nli-ar":
            track.adopt(root, name, root / "base")
    track.prepare(quiet)
    replace_base(root)
    for name in ("nli-ar", "qa-en", MULTITASK):
        assert part(track, root, name)["note"] == "made from another base"
    with pytest.raises(UsageError, match="6 parts are missing"):
        track.prepare(quiet)
    assert "6 parts" not in "".join(track.missing())
    assert len(track.missing()) == 2


def test_hints_name_the_seed_and_the_options(opened, root):
    track = again(opened, root, seed=1, normalise=True, micro=4)
    more = "--seed 1 --option normalise=true"
    with pytest.raises(UsageError, match=f"--root {root} {more} says what to do"):
        track.prepare(quiet)
    assert f"--root DIR {more} says" in track.missing()[-1]


def test_a_device_that_is_not_there_is_refused(track, root):
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(UsageError, match="no device"):
            track.make(root, "qa-en", quiet, device=device)
    assert not track.place(root, "qa-en").parent.exists()


@pytest.mark.parametrize(
    ("file", "kept", "note"),
    [
        ("squad/train", 2, "too few: 2 items, and qa-en needs 3 for train and val"),
        ("squad/validation", 0, "too few: 0 items, and qa-en needs 1 for test"),
        ("xquad.ar/all", 4, "too few: 4 items, and qa-ar needs 5 for validation and"),
        ("wiki_lingua.thai/train", 5, "too few: 4 items, and summary-th needs 5"),
        ("wiki_lingua.german/train", 3, "too few: 2 items, and summary-de needs 3"),
        ("tydiqa/train", 10, "too few: 2 items, and answerability-ko needs 3"),
        ("tydiqa/validation", 3, "too few: 0 items, and answerability-ar needs 1"),
        ("xnli.ar/test", 0, "too few: 0 items, and nli-ar needs 1 for test"),
    ],
)
def test_files_with_too_few_rows_are_not_there(track, root, file, kept, note):
    place = root / "data" / f"{file}.jsonl"
    lines = place.read_text().splitlines(keepends=True)
    place.write_text("".join(lines[: kept + 1]))
    before = part(track, root, file)
    assert before["there"], before
    place.write_text("".join(lines[:kept]))
    found = part(track, root, file)
    assert found["note"].startswith(note)
    assert not found["there"]
    with pytest.raises(UsageError, match=file):
        track.prepare(quiet)


def test_what_is_enough_for_prepare_is_enough_for_every_split(track, root):
    assert all(p["there"] for p in track.parts(root) if p["kind"] == "data")
    for cell in CELLS:
        for split in ("train", "validation", "test"):
            if split != "train" or cell in HELD_IN:
                assert track.data(cell, split)["labels"]


def test_rows_of_another_kind_are_named(track, root):
    file = root / "data" / "xnli.de" / "test.jsonl"
    file.write_text('{"premise": "p"}\n')
    note = part(track, root, "xnli.de/test")["note"]
    assert note.startswith(f"not readable: {file}: row 0 is not as the Hub's rows are")
    file.write_text("nonsense\n")
    assert "line 1: not JSON" in part(track, root, "xnli.de/test")["note"]


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("config.json", b"{", "not readable: config.json: Expecting"),
        ("config.json", b"[]", "not readable: config.json: not a table"),
        ("model.safetensors", b"\0" * 30, "not readable: model.safetensors: "),
    ],
)
def test_a_base_that_cannot_be_read_is_not_there(track, root, file, content, note):
    (root / "base" / file).write_bytes(content)
    assert part(track, root, "base")["note"].startswith(note)
    assert not part(track, root, "qa-en")["ready"]


def test_a_base_of_another_shape_is_refused_in_one_line(root):
    from mtk_tasks_crosslingual import model as mt5

    file = root / "base" / "model.safetensors"
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file(load_file(file) | {name: torch.ones(3, 16)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        mt5.load(root / "base")
    said = f"{root / 'base'}: {name!r} is (3, 16), and (16, 16) by config.json"
    assert str(caught.value) == said
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="no mT5 that transformers builds"):
        mt5.load(root / "base")


def test_transformers_says_nothing_while_it_reads_and_writes(track, root, capfd):
    from transformers.utils import logging as theirs

    class Kept(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    said = []
    handler = Kept()
    level = theirs.get_verbosity()
    theirs.add_handler(handler)
    theirs.set_verbosity_info()
    theirs.enable_progress_bar()
    try:
        track.adopt(root, "qa-en", root / "base")
        track.build(root / "base")
        assert theirs.get_verbosity() == theirs.INFO
        assert theirs.is_progress_bar_enabled()
    finally:
        theirs.remove_handler(handler)
        theirs.set_verbosity(level)
    assert not said
    assert capfd.readouterr() == ("", "")


def test_notes_say_what_the_commonest_answer_scores(track):
    notes = track.notes()
    assert len(notes) == len(RANKED)
    for task, note in zip(RANKED, notes, strict=True):
        cells = [cell for cell in CELLS if parse(cell)[0] == task]
        for cell in cells:
            labels = track.data(cell, "test")["labels"]
            best = max(labels.count(label) for label in set(labels)) / len(labels)
            assert f"{cell} {100 * best:.1f} (" in note
    assert "nli-ar 50.0 (entailment)" in notes[0]  # labels 0, 1, 2, 0
