# ruff: noqa: RUF001  other languages have other letters
"""The grid of the track ``cldr-t5``: names only, cheap to import."""

from __future__ import annotations

LANGUAGES = ("en", "de", "es", "pl", "tr")
TASKS = ("kind", "same", "date", "number", "period")
CELLS = tuple(f"{task}-{language}" for task in TASKS for language in LANGUAGES)
# The diagonal: each task is trained in one language, each language in one task.
HELD_IN = tuple(
    f"{task}-{language}" for task, language in zip(TASKS, LANGUAGES, strict=True)
)
GENERALIZATION = tuple(cell for cell in CELLS if cell not in HELD_IN)
# What pre-training taught and no expert trains: translating, between all languages.
ABILITIES = ("translate-names", "translate-dates")
SPLITS = ("train", "validation", "test")

# Scored by ranking a cell's options; the other tasks generate.
RANKED = ("kind", "same")
METRICS = {
    "kind": ("accuracy",),
    "same": ("accuracy",),
    "date": ("exact_match", "chrf"),
    "number": ("exact_match", "chrf"),
    "period": ("chrf", "exact_match"),
    "translate-names": ("chrf", "exact_match"),
    "translate-dates": ("exact_match", "chrf"),
}

# Most tokens of a generated answer, the end included; none of the references is longer.
LONGEST = {
    "date": 11,
    "number": 11,
    "period": 34,
    "translate-names": 21,
    "translate-dates": 36,
}

# The word that opens an input, in the language of the data.
PROMPTS = {
    "kind": ("kind", "Art", "clase", "rodzaj", "tür"),
    "same": ("same", "gleich", "igual", "równe", "aynı"),
    "date": ("date", "Datum", "fecha", "data", "tarih"),
    "number": ("number", "Zahl", "número", "liczba", "sayı"),
    "period": ("period", "Zeitraum", "período", "okres", "dönem"),
}
# The answers among which the ranked tasks choose, in the language of the data.
OPTIONS = {
    "kind": (
        ("place", "language", "currency"),
        ("Ort", "Sprache", "Währung"),
        ("lugar", "idioma", "moneda"),
        ("miejsce", "język", "waluta"),
        ("yer", "dil", "para"),
    ),
    "same": (
        ("yes", "no"),
        ("ja", "nein"),
        ("sí", "no"),
        ("tak", "nie"),
        ("evet", "hayır"),
    ),
}


def parse(cell: str) -> tuple[str, str]:
    """Split a cell's name into its task and its language; abilities have ``all``.

    >>> parse("date-es")
    ('date', 'es')
    """
    if cell in ABILITIES:
        return cell, "all"
    if cell not in CELLS:
        known = ", ".join((*CELLS, *ABILITIES))
        raise ValueError(f"no cell named {cell!r}; the cells are {known}")
    task, _, language = cell.partition("-")
    return task, language


def prompt(task: str, language: str) -> str:
    """Return the word that opens an input of a task.

    >>> prompt("date", "de")
    'Datum'
    """
    return PROMPTS[task][LANGUAGES.index(language)]


def options(task: str, language: str) -> tuple[str, ...]:
    """Return the answers of a ranked task.

    >>> options("same", "de")
    ('ja', 'nein')
    """
    return OPTIONS[task][LANGUAGES.index(language)]
