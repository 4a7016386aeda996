"""Track files, good and bad."""

from __future__ import annotations

import pickle
import re

import pytest

from mtk.errors import UsageError
from mtk_tasks_lmeval import load_track
from mtk_tasks_lmeval.spec import Source


@pytest.fixture
def written(place):
    """Write a track file beside the models, with changes: text -> its replacement."""

    def write(*changes):
        text = (place / "track.toml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        file = place / "changed.toml"
        file.write_text(text)
        return file

    return write


def test_a_good_file(place):
    track, target = load_track(place / "track.toml")
    assert track.name == "colours"
    assert track.target is target
    assert [task.name for task in track.held_in] == ["colour", "capitals"]
    assert [task.name for task in track.generalization] == ["words"]
    assert [task.name for task in track.abilities] == ["again"]
    assert track.tasks[0].metrics == ("lm_acc", "lm_acc_norm")
    assert track.tasks[1].metrics == ("accuracy",)
    assert target.spec.base == str(place / "base")
    assert target.spec.cell("capitals").source == Source(data=place / "capitals.jsonl")
    assert target.spec.cell("colour").include == (place / "tasks",)


def test_a_track_travels_to_worker_processes(place):
    track, _ = load_track(place / "track.toml")
    assert pickle.loads(pickle.dumps(track)) == track


def test_what_changes_scores_changes_the_version(place, written):
    versions = {load_track(place / "track.toml")[0].version}
    for old, new in (
        ('metrics = ["acc", "acc_norm"]', 'metrics = ["acc_norm"]'),
        ("limit = 7", "limit = 8"),
        ('data = "capitals.jsonl"', 'data = "capitals.jsonl"\nnormalise = true'),
    ):
        versions.add(load_track(written((old, new)))[0].version)
    assert len(versions) == 4
    said = written(
        ('base = "base"', 'base = "base"\nsummary = "Another"\ndownload = true')
    )
    assert load_track(said)[0].version in versions
    data = place / "capitals.jsonl"
    before = data.read_text()
    data.write_text(before + '{"prompt": "p", "target": "red", "choices": ["red"]}\n')
    versions.add(load_track(place / "track.toml")[0].version)
    data.write_text(before)
    assert len(versions) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('base = "base"', 'bace = "base"'), "unknown key 'bace'; did you mean 'base'"),
        (('name = "colours"\n', ""), "name is missing"),
        (('name = "colours"', "name = 3"), "give name a text"),
        (('name = "colours"', 'name = "My Colours"'), "name"),
        (('base = "base"', 'base = "base"\nadapter = "lorra"'), "did you mean 'lora'"),
        (('base = "base"', 'base = "base"\nbatch_size = 0'), "from 1 on, not 0"),
        (('base = "base"', 'base = "base"\ndownload = "yes"'), "true or false"),
        (('expert = "one"', 'exprt = "one"'), "unknown key 'exprt'; did you mean"),
        (('expert = "one"\n', ""), "give expert a text"),
        (("limit = 7", 'limit = 7\nexpert = "one"'), "only [[held_in]] cells"),
        (("limit = 7", "limit = 7.5"), "'again': limit is a whole number"),
        (('data = "capitals.jsonl"', 'data = "gone.jsonl"'), "there is no file"),
        (('data = "capitals.jsonl"', ""), "give either task"),
        (('data = "capitals.jsonl"', 'data = "c"\ntask = "t"'), "give either task"),
        (
            ('data = "capitals.jsonl"', 'data = "c"\nfilter = "x"'),
            "unknown key 'filter'",
        ),
        (('metrics = ["exact_match"]', ""), "metrics is missing"),
        (('metrics = ["exact_match"]', "metrics = []"), "a list of texts"),
        (('"acc", "acc_norm"', '"acc", "mine"'), "'mine' can only stand first"),
        (('include_path = "tasks"', 'include_path = "gone"'), "there is no folder"),
        (("limit = 7", "validation = 1.5"), "share from 0 to below 1"),
        (("limit = 7", "factors = 3"), "factors is a table"),
        (('name = "words"', 'name = "again"'), "declared twice"),
        (("[[generalization]]", "[generalization]"), "[[generalization]] tables"),
    ],
)
def test_bad_files_are_refused(written, change, message):
    file = written(change)
    with pytest.raises(UsageError) as caught:
        load_track(file)
    text = str(caught.value)
    assert message in text
    assert str(file) in text
    assert len(text.splitlines()) <= 3


@pytest.mark.parametrize("text", ["name = ", "\0", "a" * 1_000_001])
def test_no_toml(tmp_path, text):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(UsageError, match=r"bad\.toml"):
        load_track(tmp_path / "bad.toml")


def test_a_file_without_held_in_cells(tmp_path):
    (tmp_path / "bad.toml").write_text('name = "a"\nbase = "b"\n')
    with pytest.raises(UsageError, match=r"no .*held_in"):
        load_track(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "a table with the texts prompt and target"),
        ('{"prompt": "", "target": "a"}', "a table with the texts"),
        ('{"prompt": "p", "target": "a", "choices": ["b"]}', "none of the choices"),
        ('{"prompt": "p", "target": "a"}', "some items have choices"),
    ],
)
def test_bad_lines_of_data(place, written, tmp_path, line, message):
    (place / "bad.jsonl").write_text(
        '{"prompt": "p", "target": "red", "choices": ["red"]}\n' + line + "\n"
    )
    file = written(('"capitals.jsonl"', '"bad.jsonl"'))
    live = load_track(file)[1](cache=tmp_path, seed=0, options={})
    with pytest.raises(UsageError, match=message):
        live.data("capitals", "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            ('task = "tiny_colours"', 'task = "tiny_colors"'),
            "did you mean 'tiny_colours'",
            marks=pytest.mark.slow,  # the harness reads its 14,000 task files
        ),
        (
            ('metrics = ["acc", "acc_norm"]', 'metrics = ["bleu"]'),
            "'bleu' is unknown",
        ),
        (
            ('metrics = ["acc", "acc_norm"]', 'metrics = ["acc"]\nfilter = "x"'),
            "no filter",
        ),
    ],
)
def test_what_only_the_harness_knows(place, written, tmp_path, change, message):
    live = load_track(written(change))[1](cache=tmp_path, seed=0, options={})
    model = live.build(place / "one")
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        live.predict(model, "colour", live.data("colour", "test")["inputs"])
    assert len(str(caught.value).splitlines()) <= 3


def test_a_task_whose_data_are_on_the_hub_says_how_to_get_them(
    place, written, tmp_path
):
    (place / "tasks" / "far.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: x\ndoc_to_choice: [a]\n"
        "doc_to_target: 0\n"
    )
    file = written(('task = "tiny_colours"', 'task = "far"'))
    live = load_track(file)[1](cache=tmp_path, seed=0, options={})
    live.build(place / "one")
    with pytest.raises(UsageError, match="download = true"):
        live.data("colour", "test")
