"""Exact match and F1 of answers, ROUGE of summaries; one score per item.

A reference is a table: ``texts``, all of which are right, and ``language``. Answers are
compared as SQuAD's script does, made to fit other scripts: punctuation is what Unicode
calls so, articles are English ones, and Thai is compared letter by letter.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Reference = Mapping[str, Any]

_ARTICLES = {"en": {"a", "an", "the"}}
_STEMMED = {"en": "english", "de": "german", "ar": "arabic"}
ROUGE = ("rouge1", "rouge2", "rougeL")


def exact_match(
    *, predictions: Sequence[str], references: Sequence[Reference]
) -> list[float]:
    """1 where the answer is one of the right ones, but for case, marks and articles."""
    return [
        max(float(_same(text, right, r["language"])) for right in r["texts"])
        for text, r in zip(predictions, references, strict=True)
    ]


def f1(*, predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
    """F1 of the words that an answer shares with the right one that is nearest."""
    return [
        max(_overlap(text, right, r["language"]) for right in r["texts"])
        for text, r in zip(predictions, references, strict=True)
    ]


def squad_mean(
    *, predictions: Sequence[str], references: Sequence[Reference]
) -> list[float]:
    """The mean of exact match and F1, which is a cell's score in the protocol."""
    exact = exact_match(predictions=predictions, references=references)
    shared = f1(predictions=predictions, references=references)
    return [(a + b) / 2 for a, b in zip(exact, shared, strict=True)]


def rouge(
    kinds: Sequence[str],
    *,
    predictions: Sequence[str],
    references: Sequence[Reference],
) -> list[float]:
    """The mean F-measure of some kinds of ROUGE (rouge-score)."""
    return [
        sum(_rouge(text, r["texts"][0], r["language"])[kind] for kind in kinds)
        / len(kinds)
        for text, r in zip(predictions, references, strict=True)
    ]


def token_accuracy(
    *, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> list[float]:
    """Share of tokens that are guessed right, each from those before it."""
    return [
        sum(p == r for p, r in zip(guess, right, strict=True)) / len(right)
        for guess, right in zip(predictions, references, strict=True)
    ]


def words(text: str, language: str) -> list[str]:
    """Words in lower case without marks; of Thai, which has no spaces, the letters.

    >>> words("The Cat, sat!", "en")
    ['the', 'cat', 'sat']
    """
    plain = "".join(
        " " if unicodedata.category(letter)[0] in "PSZC" else letter
        for letter in unicodedata.normalize("NFKC", text).lower()
    )
    return _clusters(plain) if language == "th" else plain.split()


def _clusters(text: str) -> list[str]:
    """Letters with the marks above and below them."""
    found: list[str] = []
    for letter in text:
        if found and unicodedata.category(letter) == "Mn":
            found[-1] += letter
        elif not letter.isspace():
            found.append(letter)
    return found


def _answer(text: str, language: str) -> list[str]:
    skipped = _ARTICLES.get(language, set())
    return [word for word in words(text, language) if word not in skipped]


def _same(text: str, right: str, language: str) -> bool:
    return _answer(text, language) == _answer(right, language)


def _overlap(text: str, right: str, language: str) -> float:
    given, wanted = _answer(text, language), _answer(right, language)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def _rouge(text: str, right: str, language: str) -> dict[str, float]:
    scores = _scorer(language).score(right, text)
    return {kind: float(scores[kind].fmeasure) for kind in ROUGE}


class _Words:
    """What rouge-score calls a tokenizer: stemmed words of one language."""

    def __init__(self, language: str) -> None:
        from nltk.stem.snowball import SnowballStemmer

        self._language = language
        known = _STEMMED.get(language)
        self._stem = SnowballStemmer(known).stem if known else str

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) for word in words(text, self._language)]


@lru_cache(maxsize=8)
def _scorer(language: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), tokenizer=_Words(language))
