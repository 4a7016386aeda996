# ruff: noqa: RUF001  other languages have other signs
"""``exact_match`` and ``chrf`` against counts by hand and sacrebleu's corpus score."""

from __future__ import annotations

import pytest

from mtk_metrics import text as metrics


def test_exact_match_counts_bytes_not_likeness() -> None:
    scores = metrics.exact_match(
        predictions=["2021-03-05", "2021-03-5", "", " 1"],
        references=["2021-03-05", "2021-03-05", "", "1"],
    )
    assert scores == [1.0, 0.0, 1.0, 0.0]


def test_chrf_is_one_for_equal_texts_and_nothing_for_unlike_ones() -> None:
    same, unlike = metrics.chrf(
        predictions=["5.–9. März 2021", "xxx"],
        references=["5.–9. März 2021", "5. März"],
    )
    assert same == pytest.approx(1)
    assert unlike == 0


def test_chrf_by_hand() -> None:
    """Prediction abc, reference abd: unigrams 2/3, bigrams 1/2, trigrams 0/1.

    Precision and recall are equal, so F2 is their mean over the three orders that exist.
    """
    (score,) = metrics.chrf(predictions=["abc"], references=["abd"])
    assert score == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, abs=1e-6)


def test_chrf_of_one_item_is_sacrebleus_corpus_score() -> None:
    from sacrebleu import corpus_chrf

    pairs = [("5 mar 2021", "5–9 mar 2021"), ("May 2", "May 2 – 4, 1999"), ("x", "y")]
    for prediction, reference in pairs:
        (score,) = metrics.chrf(predictions=[prediction], references=[reference])
        expected = corpus_chrf([prediction], [[reference]]).score
        assert score == pytest.approx(expected / 100)


def test_unequal_lengths_are_refused() -> None:
    for score in (metrics.exact_match, metrics.chrf):
        with pytest.raises(ValueError, match="zip"):
            score(predictions=["a"], references=[])
