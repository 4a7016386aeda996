"""Track files, good and bad."""

from __future__ import annotations

import pickle
import re

import pytest

from mtk.errors import UsageError
from mtk.loading import load
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


ITEM = '{"prompt": "p", "target": "red", "choices": ["red"]}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "p"', "line 2: not JSON: Expecting ',' delimiter, column"),
        (b"\xff", "line 2: not JSON"),
        (b"[1]", "line 2: an item is a table with the texts prompt and target"),
        (b'{"prompt": "p"}', "line 2: target is missing"),
        (b'{"prompt": "", "target": "a"}', "line 2: prompt is empty"),
        (b'{"prompt": "p", "target": 3}', "line 2: target is no text"),
        (b'{"prompt": "\\ud800", "target": "a"}', "line 2: prompt is no text"),
        (b'{"prompt": "p", "target": "a", "choices": ["b"]}', "none of the choices"),
        (b'{"prompt": "p", "target": "a", "choices": ["a", 1]}', "no list of texts"),
        (b'{"prompt": "p", "target": "a"}', "line 2: some items have choices"),
    ],
)
@pytest.mark.parametrize(
    "change",
    [
        ('"capitals.jsonl"', '"bad.jsonl"'),
        ('"capitals.jsonl"', '"capitals.jsonl"\nvalidation = "bad.jsonl"'),
    ],
)
def test_bad_lines_of_data(place, written, change, line, message):
    (place / "bad.jsonl").write_bytes(ITEM.encode() + b"\n" + line + b"\n")
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load_track(written(change))
    assert "cell 'capitals'" in str(caught.value)
    assert str(place / "bad.jsonl") in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("lines", "more", "message"),
    [
        (0, "", "has no items"),
        (1, "", "no items for test, of 1 in all"),
        (3, "validation = 0.9", "no items for test, of 3 in all"),
        (9, "limit = 1", "no items for test, of 1 in all"),
    ],
)
def test_too_few_items(place, written, lines, more, message):
    (place / "few.jsonl").write_text((ITEM + "\n") * lines)
    with pytest.raises(UsageError, match=message):
        load_track(written(('"capitals.jsonl"', f'"few.jsonl"\n{more}')))


TASK_FILE = """
task: mine
dataset_path: {path}
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: {text}
doc_to_choice: {choices}
doc_to_target: "{{{{answer}}}}"
"""
GIVEN = {"path": "json", "text": "x", "choices": "[red, green, blue]"}
MINE = ('task = "tiny_colours"', 'task = "mine"')


@pytest.mark.parametrize(
    ("given", "change", "messages"),
    [
        pytest.param(
            {},
            ('task = "tiny_colours"', 'task = "tiny_colors"'),
            ["no task 'tiny_colors'; did you mean 'tiny_colours'", "include_path"],
            marks=pytest.mark.slow,  # the harness reads its 14,000 task files
        ),
        pytest.param(
            {"text": "[x"},
            MINE,
            ["no task 'mine'", "mine.yaml, line 8: not read, as it is no YAML"],
            marks=pytest.mark.slow,
        ),
        (
            {},
            ('"acc", "acc_norm"]', '"acc_norn"]'),
            ["'acc_norn' is unknown; did you mean 'acc_norm'", ": acc, acc_norm"],
        ),
        ({}, ('"acc", "acc_norm"]', '"acc"]\nfilter = "x"'), ["no filter 'x'", "none"]),
        (
            {},
            ('"acc", "acc_norm"]', '"acc", "f1"]\nvalidation = "tiny_words"'),
            ["'f1' is unknown"],
        ),
        (
            {},
            ('"acc", "acc_norm"]', '"acc"]\nvalidation = "tiny_words"'),
            ["'acc' is unknown", "Metrics of 'tiny_words': exact_match"],
        ),
        ({}, ("limit = 7", "limit = 1\nvalidation = 0.5"), ["no items for test"]),
        ({"path": "nobody/nothing"}, MINE, ["Couldn't reach", "download = true"]),
        ({"file": "gone.jsonl"}, MINE, ["FileNotFoundError", "you run mtk in"]),
        ({"text": '"{{quesion}}"'}, MINE, ["'quesion' is undefined"]),
        ({"file": "broken.jsonl"}, MINE, ["'mine' could not be loaded", "parse"]),
        ({"choices": "[red]"}, MINE, ["item 1 has no right answer"]),
    ],
)
def test_what_only_the_harness_knows(
    place, written, tmp_path, capfd, given, change, messages
):
    values = GIVEN | {"file": place / "questions.jsonl", "cache": tmp_path} | given
    (place / "broken.jsonl").write_text("{")
    if values["file"] == "broken.jsonl":
        values["file"] = place / "broken.jsonl"
    task = place / "tasks" / "mine.yaml"
    task.write_text(TASK_FILE.format(**values))
    live = load_track(written(change))[1](cache=tmp_path, seed=0, options={})
    try:
        with pytest.raises(UsageError) as caught:
            live.prepare(lambda *_: None)
    finally:
        task.unlink()
    text = str(caught.value)
    assert [message for message in messages if message not in text] == [], text
    assert "cell '" in text
    assert len(text.splitlines()) <= 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "metric", ["joint_accuracy", "kid", "lm_acc", "base_similarity"]
)
def test_metrics_that_take_no_texts(written, tmp_path, metric):
    names = {provided.item.name for provided in load().metrics}
    if "chrf" not in names:
        pytest.skip("the metrics of texts are not installed")
    file = written(('"capitals.jsonl"', f'"capitals.jsonl"\nmetrics = ["{metric}"]'))
    live = load_track(file)[1](cache=tmp_path, seed=0, options={})
    with pytest.raises(UsageError) as caught:
        live.prepare(lambda *_: None)
    text = str(caught.value)
    assert f"cell 'capitals': the metric '{metric}' does not score texts" in text
    assert text.endswith("Metrics that do: accuracy, chrf, exact_match")
    assert len(text.splitlines()) == 3


def test_data_that_may_be_fetched_and_cannot_be(place, written, tmp_path):
    (place / "tasks" / "far.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: x\ndoc_to_choice: [a]\n"
        "doc_to_target: 0\n"
    )
    file = written(
        ('task = "tiny_colours"', 'task = "far"'),
        ('base = "base"', 'base = "base"\ndownload = true'),
    )
    live = load_track(file)[1](cache=tmp_path, seed=0, options={})
    with pytest.raises(UsageError, match="within reach"):
        live.prepare(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('base = "base"', 'base = "base"\nchat_template = true'),
            "chat_template is true, and .*base has none",
        ),
        (('base = "base"', 'base = "base"\ntokenizer = "tasks"'), "no tokenizer"),
        (('base = "base"', 'base = "tasks"'), "no language model"),
    ],
)
def test_models_that_cannot_answer(written, tmp_path, change, message):
    live = load_track(written(change))[1](cache=tmp_path, seed=0, options={})
    with pytest.raises(UsageError, match=message) as caught:
        live.prepare(lambda *_: None)
    assert len(str(caught.value).splitlines()) <= 3
