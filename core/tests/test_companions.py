"""What stands beside weights: configs, tokenizers, code, licences and manifests."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from mtk.companions import differences, read_companions, token_differences
from mtk.folders import new_folder, put_file, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"model_type": "llama", "rope_theta": 10000.0, "text_config": {"layers": 2}}


def folder(path: Path, **files: object) -> Path:
    path.mkdir()
    for name, content in {"config.json": CONFIG, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name).write_text(text)
    return path


def changes(
    tmp_path: Path, base: dict[str, object], other: dict[str, object]
) -> dict[str, str]:
    one = read_companions(folder(tmp_path / "base", **base))
    two = read_companions(folder(tmp_path / "other", **other))
    return dict(differences(one, two))


def test_equal_folders_differ_in_nothing(tmp_path: Path) -> None:
    files = {"README.md": "---\nlicense: mit\n---\n", "chat_template.jinja": "{{ x }}"}
    assert changes(tmp_path, files, files) == {}
    assert read_companions(tmp_path / "base").found == []
    assert read_companions(tmp_path / "base").licence == "mit"


def test_configs_are_compared_key_by_key(tmp_path: Path) -> None:
    new = {
        **CONFIG,
        "rope_theta": 1.0,
        "text_config": {"layers": 3},
        "_name_or_path": "x",
    }
    found = changes(tmp_path, {}, {"config.json": {**new, "extra": True}})
    assert set(found) == {"config"}
    for part in (
        "rope_theta is 1.0, was 10000.0",
        "text_config.layers is 3, was 2",
        "extra is true, was absent",
    ):
        assert part in found["config"]
    assert "_name_or_path" not in found["config"]


@pytest.mark.parametrize(
    ("base", "other", "check"),
    [
        ({"chat_template.jinja": "a"}, {"chat_template.jinja": "b"}, "template"),
        ({}, {"tokenizer_config.json": {"chat_template": "{{ b }}"}}, "template"),
        ({"tokenizer_config.json": {"bos_token": "<s>"}}, {"tokenizer_config.json": {"bos_token": {"content": "<b>"}}}, "tokens"),
        ({"README.md": "---\nlicense: mit\n---\n"}, {"README.md": "---\nlicense: other\n---\n"}, "licence"),
        ({"LICENSE": "MIT"}, {}, "licence"),
        ({"generation_config.json": {"temperature": 1}}, {"generation_config.json": {"temperature": 2}}, "config"),
    ],
)  # fmt: skip
def test_what_differs_is_named(tmp_path: Path, base, other, check: str) -> None:
    assert list(changes(tmp_path, base, other)) == [check]


def test_tokens_that_moved_were_added_or_are_missing() -> None:
    base = {"a": 0, "b": 1, "c": 2}
    other = {"a": 0, "b": 2, "d": 3}
    messages = [message for _, message in token_differences(base, other)]
    assert messages == [
        "1 tokens have other ids than in the base: 'b'",
        "1 tokens are added to the base's: 'd'",
        "1 tokens are missing from the base's: 'c'",
    ]
    assert list(token_differences(base, dict(base))) == []


def test_code_pickles_and_links_are_reported(tmp_path: Path) -> None:
    model = folder(
        tmp_path / "m",
        **{
            "modeling.py": "1/0",
            "config.json": {**CONFIG, "auto_map": {"AutoModel": "x.Y"}},
        },
    )
    (model / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "secret.json").write_text("{}")
    (model / "generation_config.json").symlink_to("../secret.json")
    os.mkfifo(model / "tokenizer_config.json")
    found = read_companions(model).found
    text = "\n".join(f"{check}: {message}" for check, message in found)
    for part in (
        "modeling.py",
        "auto_map",
        "pytorch_model.bin",
        "generation_config.json",
        "tokenizer_config.json is no plain file",
    ):
        assert part in text
    assert {check for check, _ in found} == {"code", "pickle", "files"}


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "[]", "\x80", " " * (17 << 20)])
def test_damaged_files_are_findings(tmp_path: Path, text: str) -> None:
    model = folder(tmp_path / "m")
    for name in ("config.json", "tokenizer_config.json"):
        (model / name).write_bytes(text.encode("latin-1"))
    found = read_companions(model).found
    assert [check for check, _ in found] == ["files", "files"]


def test_a_manifest_that_does_not_fit_its_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as partial:
        put_file(partial, "model.safetensors", b"12345678")
        write_manifest(partial, {"mtk": "0"})
    assert read_companions(tmp_path / "out").found == []
    (tmp_path / "out" / "model.safetensors").write_bytes(b"12345679")
    ((check, message),) = read_companions(tmp_path / "out").found
    assert check == "manifest"
    assert "model.safetensors is not the file" in message


def test_nothing_in_a_finding_writes_on_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\n"
    model = folder(
        tmp_path / "m",
        **{"README.md": "---\nlicense: mit\x1b[2J\n---\n", "config.json": {evil: evil}},
    )
    (model / f"{evil}.py").write_text("")
    seen = read_companions(model)
    base = read_companions(folder(tmp_path / "b"))
    texts = [
        m
        for _, m in [
            *seen.found,
            *differences(base, seen),
            *token_differences({evil: 0}, {}),
        ]
    ]
    assert len(texts) == 3
    assert all(text.isprintable() for text in [*texts, seen.licence])
