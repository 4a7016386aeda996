"""The grid of the track ``crosslingual-mt5``: names only, cheap to import."""

from __future__ import annotations

from dataclasses import dataclass

# Task -> its languages; the first is held in, the others are generalization.
GRID = {
    "qa": ("en", "ar", "de", "th"),
    "nli": ("ar", "th", "en", "de"),
    "summary": ("th", "ar", "en", "ko", "de"),
    "sense": ("de", "en", "ko"),
    "answerability": ("ko", "en", "th", "ar"),
}
METRICS = {
    "qa": ("squad_mean", "squad_em", "squad_f1"),
    "nli": ("accuracy",),
    "summary": ("rouge_mean", "rouge1", "rouge2", "rougel"),
    "sense": ("accuracy",),
    "answerability": ("accuracy",),
    "continuation": ("token_accuracy",),
}
HELD_IN = tuple(f"{task}-{languages[0]}" for task, languages in GRID.items())
GENERALIZATION = tuple(
    f"{task}-{language}"
    for task, languages in GRID.items()
    for language in languages[1:]
)
# Spanish stands in no cell of the grid.
ABILITY = "continuation-es"
CELLS = (*HELD_IN, *GENERALIZATION, ABILITY)
MULTITASK = "multitask"
# Items of a batch whose gradients are computed at once; the protocol has one to four.
MICRO = 4
SPLITS = ("train", "validation", "test")
# Tasks answered by ranking given answers; the others by writing.
RANKED = ("nli", "sense", "answerability")


def parse(cell: str) -> tuple[str, str]:
    """Split a cell's name into its task and its language.

    >>> parse("nli-ar")
    ('nli', 'ar')
    """
    if cell not in CELLS:
        raise ValueError(f"no cell named {cell!r}; the cells are {', '.join(CELLS)}")
    task, _, language = cell.partition("-")
    return task, language


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """How many items at the end of a file are kept for another split.

    The defaults are the protocol's; smaller ones are for small copies of the data.

    Args:
        held_back: of the training items of SQuAD, WiC and TyDiQA, for validation.
        wiki_validation, wiki_test: of WikiLingua's only file.
        xquad_validation: of XQuAD's only file, from the first on; the rest is test.
    """

    held_back: int = 1000
    wiki_validation: int = 1000
    wiki_test: int = 2500
    xquad_validation: int = 990
