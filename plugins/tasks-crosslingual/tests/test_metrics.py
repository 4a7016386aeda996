"""Metrics against numbers worked out by hand, and against rouge-score itself."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from mtk_tasks_crosslingual import metrics


def right(*texts, language="en"):
    return [{"texts": texts, "language": language}]


@pytest.mark.parametrize(
    ("text", "reference", "exact", "f1"),
    [
        ("The King!", right("king"), 1.0, 1.0),
        ("old king", right("king"), 0.0, 2 / 3),
        ("queen", right("king", "queen"), 1.0, 1.0),
        ("", right("king"), 0.0, 0.0),
        ("the", right("king"), 0.0, 0.0),
        ("king king", right("king"), 0.0, 2 / 3),
        ("die Stadt", right("Stadt", language="de"), 0.0, 2 / 3),
        ("«الملك»", right("الملك", language="ar"), 1.0, 1.0),
        ("กขค", right("กข", language="th"), 0.0, 4 / 5),
    ],
)
def test_answers(text, reference, exact, f1):
    given = {"predictions": [text], "references": reference}
    assert metrics.exact_match(**given) == [exact]
    assert metrics.f1(**given) == [pytest.approx(f1)]
    assert metrics.squad_mean(**given) == [pytest.approx((exact + f1) / 2)]


def test_english_rouge_is_that_of_rouge_score():
    pairs = [
        ("the cats sat on a mat", "a cat was sitting on the mat"),
        ("running quickly home", "they ran home"),
        ("", "a text"),
    ]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for text, reference in pairs:
        stem = metrics._Words("en").tokenize
        given = {"predictions": [text], "references": right(reference)}
        found = scorer.score(" ".join(stem(reference)), " ".join(stem(text)))
        for kind in metrics.ROUGE:
            assert metrics.rouge((kind,), **given) == [found[kind].fmeasure]
        mean = sum(found[kind].fmeasure for kind in metrics.ROUGE) / 3
        assert metrics.rouge(metrics.ROUGE, **given) == [pytest.approx(mean)]


@pytest.mark.parametrize("language", ["ar", "de", "th", "ko"])
def test_rouge_sees_other_scripts(language):
    text = {
        "ar": "كتب الولد",
        "de": "Häuser bauen",
        "th": "แมวกินปลา",
        "ko": "고양이가 잔다",
    }
    given = {"predictions": [text[language]]}
    same = metrics.rouge(
        metrics.ROUGE, references=right(text[language], language=language), **given
    )
    other = metrics.rouge(
        metrics.ROUGE, references=right("xyz abc", language=language), **given
    )
    assert same == [1.0]
    assert other == [0.0]


def test_thai_letters_keep_their_marks():
    assert metrics.words("ที่นี่", "th") == ["ที่", "นี่"]


def test_token_accuracy():
    found = metrics.token_accuracy(
        predictions=[[1, 2, 3], [4]], references=[[1, 0, 3], [4]]
    )
    assert found == [2 / 3, 1.0]
