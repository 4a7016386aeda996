"""Model folders from strangers: read as plain data, bounded, and only from inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mtk.errors import CheckpointError
from mtk.model_folders import reading
from mtk.model_folders.carrying import (
    companions,
    dump,
    is_tokenizer_file,
    left_out,
)
from mtk.model_folders.cleaning import clean, fetches, offline
from mtk.model_folders.indexes import check_index, read_index
from mtk.model_folders.reading import DEEPEST, read_config, read_json, read_object

if TYPE_CHECKING:
    from pathlib import Path


def nested(depth: int, start: str = '{"a":', end: str = "}") -> bytes:
    return (start * depth + "1" + end * depth).encode()


@pytest.mark.parametrize(
    ("start", "end", "levels"),
    [('{"a":', "}", DEEPEST), ("[", "]", DEEPEST), ('[{"a":', "}]", DEEPEST // 2)],
)
def test_depth_is_bounded_before_anything_descends(start, end, levels) -> None:
    assert read_json(nested(levels, start, end))
    with pytest.raises(CheckpointError, match="nested more than 100"):
        read_json(nested(levels + 1, start, end))
    for depth in (900, 200_000):
        with pytest.raises(CheckpointError) as refused:
            read_json(nested(depth, start, end), owner="a config")
        assert str(refused.value).startswith("a config")
        assert len(str(refused.value).splitlines()) == 1


def test_size_and_kind_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    assert read_object(file, most=8) == {"a": 1}
    for source in (file, file.read_bytes()):
        with pytest.raises(CheckpointError, match="larger than 7 bytes"):
            read_json(source, most=7)
    for text in (b"", b"{", b"\xff\xfe\xfd", b"9" * 5000, b"nul"):
        with pytest.raises(CheckpointError, match="not a readable JSON file"):
            read_json(text)
    with pytest.raises(CheckpointError, match="holds a list, not a JSON object"):
        read_object(b"[]")
    file.write_text("3")
    with pytest.raises(CheckpointError, match=r"a\.json holds a int"):
        read_object(file)


def test_repeated_keys_are_refused_where_asked() -> None:
    text = b'{"a": 1, "b": {"r": 1, "r": 2}}'
    assert read_json(text) == {"a": 1, "b": {"r": 2}}
    with pytest.raises(CheckpointError, match="a key stands twice"):
        read_json(text, unique=True)


def test_pipes_and_links_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert read_config(folder) == {}
    (tmp_path / "outside.json").write_text('{"secret": 1}')
    (folder / "config.json").symlink_to("../outside.json")
    assert read_config(folder) == {}
    assert companions(folder) == {}
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert read_config(folder) == {}
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_json(folder / "config.json")


def test_companions_are_known_files_without_code(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": {}, "z": 1, "a": 2}')
    (tmp_path / "generation_config.json").write_text('{"z": 1}')
    (tmp_path / "tokenizer.model").write_bytes(b"\x80\x04\x95")
    (tmp_path / "spiece.model").write_bytes(b"PK\x03\x04")
    (tmp_path / "vocab.json").write_text("{}")
    for name in ("LICENSE.py", "LICENSE.bin", "modeling.py", "README.md", "LICENSE"):
        (tmp_path / name).write_text("x")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "a.jinja").write_text("x")
    (tmp_path / "additional_chat_templates" / "a.py").write_text("x")
    found = companions(tmp_path, "part/")
    assert found.pop("part/config.json") == b'{\n  "z": 1,\n  "a": 2\n}\n'
    names = (
        "generation_config.json", "vocab.json", "LICENSE",
        "additional_chat_templates/a.jinja",
    )  # fmt: skip
    assert found == {f"part/{name}": tmp_path / name for name in names}
    assert len(left_out(tmp_path)) == 2
    assert [n for n in names if is_tokenizer_file(n)] == [names[1], names[3]]
    monkeypatch.setattr(reading, "LARGEST", 1)
    with pytest.raises(CheckpointError, match="more than any tokenizer or config"):
        companions(tmp_path)


def test_configs_lose_what_names_code_at_any_depth() -> None:
    inner = {
        "auto_map": {"AutoModel": "x.Y"},
        "custom_pipelines": {},
        "attn_implementation": "someone/kernel",
        "_experts_implementation": {"": "someone"},
        "kept_implementation": "eager",
        "auto_maps": 1,
    }
    left = {"kept_implementation": "eager", "auto_maps": 1}
    assert clean({**inner, "a": [inner, {"b": inner}]}) == {
        **left,
        "a": [left, {"b": left}],
    }
    assert fetches({"vision_config": {"use_pretrained_backbone": True}})
    assert not fetches({"vision_config": {"use_pretrained_backbone": False}, "a": [1]})


def test_offline_lasts_as_long_as_it_should() -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    with offline():
        during = constants.HF_HUB_OFFLINE
    assert during is True
    assert before == constants.HF_HUB_OFFLINE
    with pytest.raises(CheckpointError), offline():
        read_json(b"")
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("text", ["é\U0001f600", "\ud800 and \udfff", "\\", "\n"])
def test_every_string_survives_the_writing(text: str) -> None:
    written = dump({"a": text})
    assert json.loads(written.decode("utf-8")) == {"a": text}
    assert read_json(written) == {"a": text}


BAD_TABLES = {
    "../x.safetensors": "not a file beside it",
    "/etc/passwd": "not a file beside it",
    "": "not a file beside it",
    "gone": "does not exist",
    "x" * 5000: "does not exist",
    "a\0b": "does not exist",
    "link": "link to a file outside",
    "loop": "link to a file outside",
    "..": "not a file beside it",
    "pipe": "no plain file",
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_indexes_name_plain_files_beside_them(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "good").write_text("")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    (tmp_path / "x.safetensors").write_text("")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "good", "b": name}}))
    with pytest.raises(CheckpointError, match=BAD_TABLES[name]) as refused:
        read_index(index)
    assert len(str(refused.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}',
     "[" * 100_000],
)  # fmt: skip
def test_what_is_no_index(tmp_path: Path, content: str) -> None:
    index = tmp_path / "a.json"
    index.write_text(content)
    with pytest.raises(CheckpointError, match="not an index of shards"):
        read_index(index)
    for odd in (3, None, [], {}):
        index.write_text(json.dumps({"weight_map": {"a": odd}}))
        with pytest.raises(CheckpointError, match="not a file beside it"):
            read_index(index)


def test_an_index_must_say_what_its_shards_say(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one", "b": "two", "c": "one"}}')
    for name in ("one", "two"):
        (tmp_path / name).write_text("")
    table = read_index(index)
    assert table == {"a": "one", "b": "two", "c": "one"}
    check_index(index, table, ["c", "b", "a"])
    for names in (["a", "b"], ["a", "b", "c", "d"]):
        with pytest.raises(CheckpointError, match=r"disagree about '[cd]'"):
            check_index(index, table, names)


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, mtk.model_folders.adapting, mtk.model_folders.indexes;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
