from __future__ import annotations

import os
import time

import pytest

from mtk.errors import UsageError
from mtk_recipes_mergekit.document import MOST_BYTES, read_documents


def plain(item):
    if item.is_mapping:
        return {key: plain(value) for key, value in item.value.items()}
    return [plain(value) for value in item.value] if item.is_list else item.value


def load(tmp_path, text):
    path = tmp_path / "config.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_documents(path)


def test_values_are_those_of_yaml(tmp_path):
    text = "a: [1, 2.5, 1e-4, 1.0e-4, on, null, word, '7']\nb: {c: {}}\n"
    (document,) = load(tmp_path, text)
    # YAML 1.1 takes 1e-4, without a point, as a word; so does mergekit.
    values = [1, 2.5, "1e-4", 1e-4, True, None, "word", "7"]
    assert plain(document) == {"a": values, "b": {"c": {}}}


def test_items_know_their_line(tmp_path):
    (document,) = load(tmp_path, "# first\na:\n  - x: 1\n  - y:\n      z: 2\n")
    first, second = document.value["a"].value
    assert document.value["a"].where == "config.yml, line 2"
    assert first.where == "config.yml, line 3"
    assert second.value["y"].value["z"].where == "config.yml, line 5"


def test_aliases_and_merge_keys_as_in_pyyaml(tmp_path):
    yaml = pytest.importorskip("yaml")
    text = """
    one: &one {a: 1, b: 2}
    two: &two {b: 3, c: 4}
    all: {<<: [*one, *two], c: 5}
    own: {b: 9, <<: *one}
    list: [*one, *two]
    """
    assert plain(load(tmp_path, text)[0]) == yaml.safe_load(text)


def test_documents_that_are_empty_do_not_count(tmp_path):
    assert len(load(tmp_path, "---\na: 1\n---\n---\nb: 2\n")) == 2


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)
MERGED_BOMB = "\n".join(
    ["a0: &a0 {x: [1, 2, 3, 4, 5, 6, 7, 8]}"]
    + [
        f"a{i}: &a{i} {{k: *a{i - 1}, <<: [*a{i - 1}, *a{i - 1}]}}"
        for i in range(1, 40)
    ]
)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (BOMB, 5, "not a recipe"),
        (MERGED_BOMB, 8, "not a recipe"),
        ("a: &a [*a]", 1, "alias inside"),
        ("a: &a {b: {c: *a}}", 1, "alias inside"),
        ("a: &a {<<: *a}", 1, "alias inside"),
        ("[" * 5000, 1, "levels"),
        ("- 1\n" * 100_000, 20_000, "more than 20,000 values"),
        ("a: 1\nb: 2\na: 3", 3, "'a' stands twice"),
        ("x:\n- {k: 1, k: 1}", 2, "'k' stands twice"),
        ("a: !!python/object:os.system {}", 1, "not allowed"),
        ("\n!!python/object/apply:os.system ['true']", 2, "not allowed"),
        ("a: !!set {x}", 1, "not allowed"),
        ("a: !own x", 1, "not allowed"),
        ("a: !!python/name:os.system x", 1, "not allowed"),
        ("a: 2020-01-01", 1, "quotes"),
        ("[a, b]: 1", 1, "a key must be a word"),
        ("1: 1", 1, "a key must be a word"),
        ("a: 1\n b: [", 2, "not valid YAML"),
        ("a: {b: 1", 1, "not valid YAML"),
        ("a: *unknown", 1, "undefined alias"),
        ("a: " + "1" * 5000, 1, "no value of kind int"),
        ("<<: word", 1, "takes a mapping"),
    ],
)
def test_refused_with_the_line_and_at_once(tmp_path, text, line, says):
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert message.startswith(f"config.yml, line {line}: ")
    assert says in message
    assert len(message.splitlines()) <= 3
    assert len(message) < 300


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n---\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="is empty"):
        load(tmp_path, text)


def test_no_text_and_no_plain_file(tmp_path):
    with pytest.raises(UsageError, match="UTF-8"):
        load(tmp_path, b"a: \xff\xfe")
    with pytest.raises(UsageError, match="special characters"):
        load(tmp_path, "a: \x01")
    with pytest.raises(UsageError, match="more than 1,000,000 bytes"):
        load(tmp_path, "a: " + "x" * MOST_BYTES)
    with pytest.raises(UsageError, match="no such file"):
        read_documents(tmp_path)
    os.mkfifo(tmp_path / "pipe.yml")
    with pytest.raises(UsageError, match="no such file"):
        read_documents(tmp_path / "pipe.yml")
