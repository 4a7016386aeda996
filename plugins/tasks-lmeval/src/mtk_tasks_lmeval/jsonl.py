"""Items from a JSONL file, as a task of the harness, and its answers as texts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mtk.errors import UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mtk_tasks_lmeval.spec import Cell

MOST_LINES = 1_000_000
_KEYS = ("prompt", "target")
_ITEM = "an item is a table with the texts prompt and target"


def rows(file: Path, where: str) -> list[dict[str, Any]]:
    """The items of a JSONL file: prompt, target, and choices for all or for none."""
    found: list[dict[str, Any]] = []
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                place = f"{where}: {file}, line {number}"
                if number > MOST_LINES:
                    raise UsageError(f"{place}: more than {MOST_LINES} lines")
                found.append(_row(line, place))
                if ("choices" in found[0]) != ("choices" in found[-1]):
                    raise UsageError(
                        f"{place}: some items have choices and some have none\n"
                        "Give choices in all lines, or in none"
                    )
    except OSError as error:
        raise UsageError(f"{where}: {file}: {first_line(error)}") from error
    if not found:
        raise UsageError(f"{where}: {file} has no items")
    return found


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        why = f"{error.msg}, column {error.pos + 1}"
        raise UsageError(f"{place}: not JSON: {why}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not JSON: {first_line(error)}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{place}: {_ITEM}")
    for key in _KEYS:
        if key not in row:
            raise UsageError(f"{place}: {key} is missing\n{_ITEM.capitalize()}")
        if not _is_text(row[key]) or not (row[key] or key == "target"):
            what = "empty" if row[key] == "" else "no text"
            raise UsageError(f"{place}: {key} is {what}\n{_ITEM.capitalize()}")
    item = {key: row[key] for key in _KEYS}
    choices = row.get("choices")
    if choices is None:
        return item
    if not isinstance(choices, list) or not all(map(_is_text, choices)):
        raise UsageError(f"{place}: choices is no list of texts")
    if row["target"] not in choices:
        raise UsageError(f"{place}: target is none of the choices")
    return item | {"choices": choices}


def _is_text(value: object) -> bool:
    """Whether it is a text that UTF-8 can hold; JSON may escape half a character."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def own_task(cell: Cell, file: Path, where: str) -> dict[str, Any]:
    """The configuration of a task of the harness that asks for a file's items."""
    found = rows(file, where)

    def dataset(**_: object) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(found)}

    config: dict[str, Any] = {
        "task": f"mtk_{cell.name}",
        "custom_dataset": dataset,
        "test_split": "test",
        "doc_to_text": _prompt,
        "doc_to_target": _target,
        "target_delimiter": " ",
        "num_fewshot": 0,
    }
    if "choices" in found[0]:
        return config | {"output_type": "multiple_choice", "doc_to_choice": _choices}
    stop = {"until": list(cell.until), "max_gen_toks": cell.max_new_tokens}
    return config | {
        "output_type": "generate_until",
        "generation_kwargs": stop | {"do_sample": False},
        # Only the text is used; mtk's own metrics score it.
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        ],
    }


def _prompt(doc: dict[str, Any]) -> str:
    return str(doc["prompt"])


def _target(doc: dict[str, Any]) -> int | str:
    if doc.get("choices"):
        return int(doc["choices"].index(doc["target"]))
    return str(doc["target"])


def _choices(doc: dict[str, Any]) -> list[str]:
    return list(doc["choices"])


def answer(cell: Cell, sample: Mapping[str, Any]) -> str:
    """The text that a model gave, or the choice that it finds likeliest."""
    choices: Sequence[str] | None = sample["doc"].get("choices")
    if not choices:
        return str(sample["filtered_resps"][0]).strip()
    likelihoods = [float(answer[0]) for answer in sample["filtered_resps"]]
    if cell.normalise:
        lengths = [max(len(choice), 1) for choice in choices]
        likelihoods = [x / n for x, n in zip(likelihoods, lengths, strict=True)]
    return choices[max(range(len(choices)), key=likelihoods.__getitem__)].strip()
