"""Folders from strangers: what stands beside the weights is bounded, and stays inside.

Every case is a real command line in a fork of one warm process (``safety_child.py``).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from safety_models import (
    CONFIG,
    SECRET,
    TOKENIZER,
    merge,
    nothing,
    write_model,
    written,
)

if TYPE_CHECKING:
    from pathlib import Path


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


DEEP = {
    "lists": "[" * 200_000,
    "closed lists": "[" * 100_000 + "]" * 100_000,
    "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "in an object": '{"model": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "not json": "{",
    "not text": "\udcff\udcfe",
    "a long number": '{"vocab_size": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("what", DEEP)
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "manifest.json", "model.safetensors.index.json"],
)
def test_damaged_json(child, place: Path, name: str, what: str) -> None:
    (place / "bad" / name).write_bytes(DEEP[what].encode("utf-8", "surrogateescape"))
    if "index" in name:
        (place / "bad" / "model.safetensors").rename(place / "bad" / "part.safetensors")
    outcome = merge(child, place)
    if outcome.code == 0:  # what is carried over unread is carried over as it is
        assert written(place)[name] == (place / "bad" / name).read_bytes()
    else:
        assert "bad" in outcome.refused()
        nothing(place)
    seen = child.mtk("inspect", "bad", cwd=place)
    assert seen.code in (0, 2), seen
    assert len(seen.stderr.splitlines()) <= 3


@pytest.mark.parametrize("value", [[], "text", 3, None, True, [["a"]]])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "manifest.json",
        "model_index.json",
        "modules.json",
        "generation_config.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "adapter_config.json",
        "open_clip_config.json",
    ],
)
def test_json_of_another_kind(child, place: Path, name: str, value: object) -> None:
    (place / "bad" / name).write_text(json.dumps(value))
    outcome = merge(child, place, "--dtype", "float16")
    if outcome.code:
        outcome.refused()
        nothing(place)
    else:
        written(place)


def values(value: object):
    """A config with every value at the top replaced by one of another kind."""
    for key in value:
        for other in (None, [], {}, "text", -1, 1.5, True, [[]], {"a": {}}):
            yield {**value, key: other}


def test_configs_with_values_of_another_kind(child, place: Path) -> None:
    outcomes = []
    for number, config in enumerate(
        values({**CONFIG, "tie_word_embeddings": True, "text_config": {}})
    ):
        (place / "bad" / "config.json").write_text(json.dumps(config))
        outcome = merge(child, place, "--dry-run")
        assert outcome.code == 0 or outcome.refused(), (number, config)
        outcomes.append(outcome.code)
    assert 0 in outcomes


def test_tokenizers_with_values_of_another_kind(child, place: Path) -> None:
    tokens = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "a"}],
        **TOKENIZER,
    }
    made = list(values(tokens))
    made += [
        {**tokens, "model": model}
        for model in values({**TOKENIZER["model"], "type": "Unigram"})
    ]
    made += [
        {**tokens, "added_tokens": [token]}
        for token in values({"id": 4, "content": "e"})
    ]
    for tokenizer in made:
        (place / "bad" / "tokenizer.json").write_text(json.dumps(tokenizer))
        for more in ((), ("--tokenizer", "union")):
            outcome = merge(child, place, "--dry-run", *more)
            assert outcome.code == 0 or outcome.refused(), tokenizer


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "vocab.txt",
        "chat_template.jinja",
        "LICENSE",
    ],
)
def test_companions_of_gigabytes(child, place: Path, name: str) -> None:
    sparse(place / "bad" / name, 3 << 30)
    assert name in merge(child, place).refused()
    nothing(place)


def test_a_manifest_of_gigabytes(child, place: Path) -> None:
    sparse(place / "bad" / "manifest.json", 3 << 30)
    assert "manifest.json" in merge(child, place).refused()


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "manifest.json",
        "LICENSE",
        "model.safetensors",
        "extra.safetensors",
        "chat_template.jinja",
        "model_index.json",
        "modules.json",
        "adapter_config.json",
    ],
)
def test_pipes_are_not_waited_for(child, place: Path, name: str) -> None:
    (place / "bad" / name).unlink(missing_ok=True)
    os.mkfifo(place / "bad" / name)
    outcome = merge(child, place)
    if outcome.code:
        outcome.refused()
        nothing(place)
    elif name != "manifest.json":
        assert name not in written(place)
    assert child.mtk("inspect", "bad", cwd=place).code in (0, 2)


OUTSIDE = (
    "../outside",
    "{place}/outside",
    "../x/outside",
    "/etc/passwd",
    "loop",
    "gone",
    "sub",
)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "LICENSE",
        "chat_template.jinja",
        "tokenizer_config.json",
        "generation_config.json",
    ],
)
@pytest.mark.parametrize("target", OUTSIDE)
def test_links_out_of_the_folder_are_not_carried_over(
    child, place: Path, name: str, target: str
) -> None:
    (place / "x").symlink_to(place)
    (place / "bad" / "loop").symlink_to("loop")
    (place / "bad" / "sub").mkdir()
    file = place / "bad" / name
    file.unlink(missing_ok=True)
    file.symlink_to(target.format(place=place))
    outcome = merge(child, place)
    if outcome.code:
        outcome.refused()
        nothing(place)
    else:
        assert name not in written(place)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00001-of-00001.safetensors"]
)
def test_weights_that_are_links_out_of_the_folder(
    child, place: Path, name: str
) -> None:
    (place / "bad" / "model.safetensors").rename(place / "evil")
    (place / "bad" / name).symlink_to("../evil")
    assert "outside" in merge(child, place).refused()


def test_a_linked_folder_of_templates(child, place: Path) -> None:
    (place / "x").mkdir()
    (place / "x" / "a.jinja").write_text(SECRET)
    (place / "bad" / "additional_chat_templates").symlink_to("../x")
    assert merge(child, place).code == 0
    written(place)


def test_the_cache_of_the_hub_works(child, place: Path) -> None:
    blobs = place / "hub" / "models--a--b" / "blobs"
    snapshot = place / "hub" / "models--a--b" / "snapshots" / "0123"
    write_model(snapshot, 3)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = blobs / f"{number:040x}"
        file.rename(blob)
        file.symlink_to(f"../../blobs/{blob.name}")
    outcome = child.mtk(
        "merge",
        "-m",
        "average",
        "--expert",
        snapshot,
        "--expert",
        "good",
        "-o",
        "out",
        cwd=place,
    )
    assert outcome.code == 0, outcome
    files = written(place)
    assert json.loads(files["config.json"]) == CONFIG
    assert json.loads(files["tokenizer.json"]) == TOKENIZER
