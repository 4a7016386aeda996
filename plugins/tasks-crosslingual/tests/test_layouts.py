"""Files as the authors of the data sets published them, in their layout."""

from __future__ import annotations

import json

import pytest

from mtk.errors import UsageError
from mtk_tasks_crosslingual.cells import Cuts
from mtk_tasks_crosslingual.layouts import place, rows
from mtk_tasks_crosslingual.sets import examples

SMALL = Cuts(xquad_validation=1)
# The layout of xquad.LANGUAGE.json: articles, paragraphs, questions; ours is the text.
QUESTION = {
    "answers": [{"answer_start": 3, "text": "1066"}],
    "id": "56beb4343aeaaa14008c925b",
    "question": "When came the king?",
}
XQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "qas": [QUESTION, QUESTION | {"id": "b", "question": "Who came?"}],
                    "context": "In 1066 came the king.",
                }
            ],
            "title": "Kings",
        },
        {"paragraphs": [{"qas": [QUESTION | {"id": "c"}], "context": "In 1066 he."}]},
    ],
    "version": "1.1",
}
SENSE = 'Bank\tN\t4\t8\t0\t4\tDie "Bank ist hart.\tBank und Geld.'


def put(root, name, text):
    file = root / "data" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_squad_as_published_gives_the_rows_of_the_hub(tmp_path):
    put(tmp_path, "xquad.de/all.json", json.dumps(XQUAD))
    first, *others = (
        *examples(tmp_path, "qa-de", "validation", SMALL),
        *examples(tmp_path, "qa-de", "test", SMALL),
    )
    assert first.fields == {
        "question": "When came the king?",
        "context": "In 1066 came the king.",
    }
    assert first.answers == ("1066",)
    assert [e.fields["question"] for e in others] == ["Who came?", QUESTION["question"]]
    row = next(iter(rows(tmp_path / "data" / "xquad.de" / "all.json")))
    lines = put(tmp_path, "xquad.th/all.jsonl", json.dumps(row) + "\n")
    assert next(iter(rows(lines))) == row
    (same,) = examples(tmp_path, "qa-th", "validation", SMALL)
    assert same == first  # parallel questions have one number in all languages


def test_xlwic_as_published_gives_the_rows_of_the_hub(tmp_path):
    put(tmp_path, "xlwic.de/train.txt", f"{SENSE}\t1\n{SENSE}\t0\n")
    put(tmp_path, "xlwic.de/test.txt", f"{SENSE}\n{SENSE}\n{SENSE}\n")
    put(tmp_path, "xlwic.de/test.gold.txt", "0\n1\n1\n")
    train, test = (
        examples(tmp_path, "sense-de", split, SMALL) for split in ("train", "test")
    )
    assert [e.label for e in train] == [1, 0]
    assert [e.label for e in test] == [0, 1, 1]
    assert train[0].fields == {
        "word": "Bank",
        "first": 'Die "Bank ist hart.',
        "second": "Bank und Geld.",
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("xquad.de/all.json", "[]", "cannot be read"),
        ("xquad.de/all.json", '{"data": [{"paragraphs": [{}]}]}', "qas"),
        ("xquad.de/all.json", '{"data": 7}', "cannot be read"),
        ("xlwic.de/test.txt", SENSE, "line 1 is not 8 fields and a label"),
        ("xlwic.de/test.txt", f"{SENSE}\t2", "line 1 is not 8 fields and a label"),
        ("xlwic.de/test.txt", "Bank\t1", "line 1 is not 8 fields and a label"),
    ],
)
def test_files_in_another_layout_are_refused(tmp_path, name, text, said):
    file = put(tmp_path, name, text)
    with pytest.raises(UsageError, match=said) as caught:
        list(rows(file))
    assert file.name in str(caught.value)


@pytest.mark.parametrize("gold", ["1\n", "1\n0\n1\n"])
def test_another_number_of_labels_is_refused(tmp_path, gold):
    file = put(tmp_path, "xlwic.de/test.txt", f"{SENSE}\n{SENSE}\n")
    put(tmp_path, "xlwic.de/test.gold.txt", gold)
    with pytest.raises(UsageError, match="another number of lines"):
        list(rows(file))


def test_rows_of_the_hub_come_before_files_as_published(tmp_path):
    published = put(tmp_path, "xquad.de/all.json", "{}")
    assert place(tmp_path, "xquad.de", "all") == published
    lines = put(tmp_path, "xquad.de/all.jsonl", "")
    assert place(tmp_path, "xquad.de", "all") == lines
    assert place(tmp_path, "xquad.ar", "all") is None
