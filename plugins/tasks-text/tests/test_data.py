# ruff: noqa: RUF001  other languages have other signs
"""The items of ``cldr-t5``: written by CLDR's rules, disjoint, the same every time."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import pytest

from mtk_tasks_text import cells, cldr, data
from mtk_tasks_text.track import ASSET

EVERY = (*cells.CELLS, *cells.ABILITIES)


def answer_to(text: str, cell: str) -> str:
    """The answer of the item with this input, in whatever split it is."""
    parts = [data.examples(cell, split) for split in cells.SPLITS]
    answers = {
        answer
        for part in parts
        for question, answer in zip(part.inputs, part.labels, strict=True)
        if question == text
    }
    (found,) = answers
    return found


def test_the_diagonal_has_each_task_and_each_language_once() -> None:
    held_in = [cells.parse(cell) for cell in cells.HELD_IN]
    assert tuple(task for task, _ in held_in) == cells.TASKS
    assert tuple(language for _, language in held_in) == cells.LANGUAGES
    assert len(cells.GENERALIZATION) == 20
    assert {*cells.HELD_IN, *cells.GENERALIZATION} == set(cells.CELLS)


@pytest.mark.parametrize(
    ("cell", "text", "answer"),
    [
        ("kind-en", "kind: Tanzania", "place"),
        ("kind-de", "Art: Tansania", "Ort"),
        ("kind-tr", "tür: Belize doları", "para"),
        ("same-de", "gleich: Rätoromanisch = Romanşça", "ja"),
        ("same-pl", "równe: Kosowo = Marshall Adaları", "nie"),
        ("date-en", "date: Sunday, August 11, 2030", "2030-08-11"),
        ("date-es", "fecha: 3 de marzo de 1953", "1953-03-03"),
        ("date-pl", "data: 27 sierpnia 2008", "2008-08-27"),
        ("number-en", "number: 489.1 thousand", "489100"),
        ("number-es", "número: 35,5 millones", "35500000"),
        ("number-tr", "sayı: 91.967,4", "91967.4"),
        (
            "period-en",
            "period: Jul 19, 1978 / Aug 21, 1978",
            "Jul 19 – Aug 21, 1978",
        ),
        ("period-de", "Zeitraum: 5. März 2028 / 16. März 2028", "5.–16. März 2028"),
        ("period-pl", "okres: 2 maj 2047 / 15 maj 2047", "2–15 maj 2047"),
    ],
)
def test_items_are_what_a_reader_would_say(cell: str, text: str, answer: str) -> None:
    assert answer_to(text, cell) == answer


def test_numbers_are_written_with_their_languages_signs() -> None:
    written = [
        cldr.write_number(123_456_750, "decimal", language)
        for language in cells.LANGUAGES
    ]
    assert written == [
        "1,234,567.5",
        "1.234.567,5",
        "1.234.567,5",
        "1 234 567,5",
        "1.234.567,5",
    ]


def test_every_answer_of_a_number_is_its_value() -> None:
    part = data.examples("number-en", "train")
    scale = {"thousand": 10**3, "million": 10**6}
    for text, answer in zip(part.inputs, part.labels, strict=True):
        figure, *words = text.removeprefix("number: ").replace(",", "").split()
        value = float(figure) * (scale[words[0]] if words else 1)
        assert float(answer) == pytest.approx(value, rel=1e-12)
        assert re.fullmatch(r"\d+(\.\d*[1-9])?", answer)


@pytest.mark.parametrize("task", cells.TASKS)
def test_an_item_is_the_same_thing_in_every_language(task: str) -> None:
    for split in cells.SPLITS:
        parts = [
            data.examples(f"{task}-{language}", split) for language in cells.LANGUAGES
        ]
        assert all(part.ids == parts[0].ids for part in parts)
        if task in cells.RANKED:
            options = [cells.options(task, language) for language in cells.LANGUAGES]
            places = [
                [names.index(answer) for answer in part.labels]
                for names, part in zip(options, parts, strict=True)
            ]
            assert all(place == places[0] for place in places)
        elif task != "period":
            assert all(part.labels == parts[0].labels for part in parts)


@pytest.mark.parametrize("cell", EVERY)
def test_splits_share_neither_items_nor_inputs(cell: str) -> None:
    parts = {split: data.examples(cell, split) for split in cells.SPLITS}
    for one, other in itertools.combinations(parts.values(), 2):
        assert not set(one.ids) & set(other.ids)
        assert not set(one.inputs) & set(other.inputs)
    for part in parts.values():
        assert len(part.inputs) == len(part.labels) == len(part.ids) >= 40


def test_ids_of_different_tasks_differ() -> None:
    seen: set[int] = set()
    for cell in (*cells.HELD_IN, *cells.ABILITIES):
        for split in cells.SPLITS:
            ids = set(data.examples(cell, split).ids)
            assert not ids & seen
            seen |= ids


def test_entities_of_the_splits_are_different_entities() -> None:
    codes = [{(e.kind, e.code) for e in data.entities(s)} for s in cells.SPLITS]
    assert sum(map(len, codes)) == len(set.union(*codes))
    assert set.union(*codes) == {(e.kind, e.code) for e in cldr.entities()}


def test_pairs_to_compare_come_from_one_split() -> None:
    for language, split in itertools.product(cells.LANGUAGES, cells.SPLITS):
        names = {name for e in data.entities(split) for name in e.names}
        part = data.examples(f"same-{language}", split)
        for text in part.inputs:
            here, there = text.split(": ", 1)[1].split(" = ")
            assert {here, there} <= names


def test_pretraining_uses_dates_and_numbers_of_its_own() -> None:
    days = {data.day("pretrain", i) for i in range(data.PRETRAIN_DAYS)}
    for use in ("date", "period", "translate-dates"):
        assert not days & {data.day(use, i) for i in range(sum(data.SIZES.values()))}
    numbers = [data.number(i)[0] for i in range(640)]
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & {data.number(i)[0] for i in range(640, 9_640)}


@pytest.mark.parametrize(
    "cell", [c for c in cells.CELLS if c.split("-")[0] in cells.RANKED]
)
def test_no_answer_of_a_ranked_task_is_rare(cell: str) -> None:
    task, language = cells.parse(cell)
    labels = data.examples(cell, "test").labels
    shares = [labels.count(o) / len(labels) for o in cells.options(task, language)]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.6 / len(shares)


def test_answers_are_no_longer_than_what_is_generated() -> None:
    for cell in EVERY:
        task, _ = cells.parse(cell)
        if task not in cells.RANKED:
            longest = max(
                len(answer.encode()) + 1
                for split in cells.SPLITS
                for answer in data.examples(cell, split).labels
            )
            assert longest <= cells.LONGEST[task]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no cell named"):
        data.examples("date-fr", "train")
    with pytest.raises(ValueError, match="no split named"):
        data.examples("date-en", "valid")


def test_data_are_those_the_base_was_made_for() -> None:
    """In another process, whose hash seed is another one."""
    facts = json.loads((ASSET / "provenance.json").read_text(encoding="utf-8"))
    script = "from mtk_tasks_text.make_base import data_hash; print(data_hash())"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == facts["data_sha256"]
