"""The grid, the templates and the data of every cell."""

from __future__ import annotations

import string

import pytest

from mtk.errors import UsageError
from mtk_tasks_crosslingual import plugin
from mtk_tasks_crosslingual.cells import (
    ABILITY,
    CELLS,
    GENERALIZATION,
    HELD_IN,
    METRICS,
    RANKED,
    Cuts,
    parse,
)
from mtk_tasks_crosslingual.layouts import rows
from mtk_tasks_crosslingual.sets import examples
from mtk_tasks_crosslingual.templates import ANSWERS, TEMPLATES

SMALL = Cuts(held_back=2, wiki_validation=2, wiki_test=2, xquad_validation=4)


def test_the_grid_is_that_of_the_protocol():
    assert HELD_IN == ("qa-en", "nli-ar", "summary-th", "sense-de", "answerability-ko")
    assert len(GENERALIZATION) == 15
    assert set(GENERALIZATION) == {
        *("qa-ar", "qa-de", "qa-th", "nli-th", "nli-en", "nli-de"),
        *("summary-ar", "summary-en", "summary-ko", "summary-de"),
        *("sense-en", "sense-ko"),
        *("answerability-en", "answerability-th", "answerability-ar"),
    }


def test_the_declaration_fits_the_grid():
    (track,) = plugin.mtk_tasks()
    assert tuple(task.name for task in track.held_in) == HELD_IN
    assert tuple(task.name for task in track.generalization) == GENERALIZATION
    assert [task.name for task in track.abilities] == [ABILITY]
    assert not track.embedded
    declared = {metric.name for metric in plugin.mtk_metrics()} | {"accuracy"}
    assert {name for names in METRICS.values() for name in names} <= declared


@pytest.mark.parametrize("cell", CELLS)
def test_templates_name_fields_that_examples_have(filled, cell):
    example = examples(filled, cell, "test", SMALL)[0]
    templates = TEMPLATES[parse(cell)]
    assert len(set(templates)) == len(templates)
    for template in templates:
        named = {name for _, name, _, _ in string.Formatter().parse(template) if name}
        assert named == set(example.fields)


def test_ranked_cells_have_different_answers():
    ranked = {parse(cell) for cell in CELLS if parse(cell)[0] in RANKED}
    assert set(ANSWERS) == ranked
    for (task, _), answers in ANSWERS.items():
        assert len(set(answers)) == len(answers) == (2 if task == "sense" else 3)


@pytest.mark.parametrize("cell", CELLS)
def test_splits_are_there_and_disjoint(opened, cell):
    splits = (
        ("train", "validation", "test") if cell in HELD_IN else ("validation", "test")
    )
    seen = []
    for split in splits:
        data = opened.data(cell, split)
        n = len(data["ids"])
        assert n == len(data["labels"]) == len(data["inputs"]["input_ids"])
        seen += data["ids"]
    assert len(seen) == len(set(seen))
    assert max(seen) < 2**52


@pytest.mark.parametrize(
    ("cell", "sizes"),
    [
        ("qa-en", (4, 2, 3)),
        ("qa-th", (None, 4, 2)),
        ("nli-ar", (5, 3, 4)),
        ("summary-th", (3, 2, 2)),  # of eight articles one has no text
        ("sense-de", (4, 4, 4)),
        ("sense-en", (3, 2, 5)),
        ("answerability-ko", (4, 2, 4)),
        ("continuation-es", (None, 4, 4)),
    ],
)
def test_cuts_are_those_of_the_protocol(filled, cell, sizes):
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        if size is None:
            with pytest.raises(UsageError, match="nothing is trained"):
                examples(filled, cell, split, SMALL)
        else:
            assert len(examples(filled, cell, split, SMALL)) == size


def test_the_protocol_s_own_numbers():
    assert Cuts() == Cuts(
        held_back=1000, wiki_validation=1000, wiki_test=2500, xquad_validation=990
    )


def test_held_back_items_are_the_last(filled):
    train = [e.fields["question"] for e in examples(filled, "qa-en", "train", SMALL)]
    held = [
        e.fields["question"] for e in examples(filled, "qa-en", "validation", SMALL)
    ]
    assert train == ["When? 0", "When? 1", "When? 2", "When? 3"]
    assert held == ["When? 4", "When? 5"]


def test_parallel_items_have_one_number(filled):
    for one, other in (("qa-ar", "qa-de"), ("nli-th", "nli-en")):
        left, right = (examples(filled, c, "test", SMALL) for c in (one, other))
        assert [e.number for e in left] == [e.number for e in right]


def test_labels_follow_the_data(filled):
    found = examples(filled, "answerability-en", "test", SMALL)
    # Rows 1, 6, 11, 16 of (YES, NO, NONE), by their first annotation.
    assert [e.label for e in found] == [1, 0, 2, 1]
    original = {
        "question_text": "q",
        "document_plaintext": "d",
        "language": "english",
        "annotations": [{"yes_no_answer": "YES"}],
    }
    from mtk_tasks_crosslingual.sets import _answerability

    assert _answerability(original, "en", "n").label == 0


def test_a_folder_of_datasets_is_read_too(filled, tmp_path):
    datasets = pytest.importorskip("datasets")
    plain = list(rows(filled / "data" / "xnli.ar" / "test.jsonl"))
    folder = tmp_path / "data" / "xnli.ar" / "test"
    datasets.Dataset.from_list(plain).save_to_disk(folder)
    saved = examples(tmp_path, "nli-ar", "test", SMALL)
    assert saved == examples(filled, "nli-ar", "test", SMALL)


@pytest.mark.parametrize(
    "text", ["{", '{"premise": "p"}', '{"premise": "p", "hypothesis": "h", "label": 7}']
)
def test_bad_rows_are_named(tmp_path, text):
    file = tmp_path / "data" / "xnli.ar" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(text + "\n")
    with pytest.raises(UsageError, match=r"test\.jsonl"):
        examples(tmp_path, "nli-ar", "test", SMALL)
