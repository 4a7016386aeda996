"""Tokenizers and configs as plain data: read, refused, and fitted to a merge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mtk.adapters import Changes, Layout
from mtk.checkpoint import StateDict
from mtk.errors import CheckpointError
from mtk.model_folders.adapting import adapted
from mtk.model_folders.tokens import of_tokenizer, tokens_of, vocabulary_of

if TYPE_CHECKING:
    from pathlib import Path


def layout_of(**files: Any) -> Layout:
    content = {name: json.dumps(value).encode() for name, value in files.items()}
    return Layout(family="transformers", files={"config.json": b"{}", **content})


@pytest.mark.parametrize(
    "content",
    [3, None, [], {}, {"model": "text"}, {"model": {"vocab": "text"}},
     {"model": {"vocab": 3}}, {"model": {"vocab": None}},
     {"model": {"vocab": ["ab", "cd"]}}, {"model": {"vocab": [["a"]]}},
     {"model": {"vocab": [["a", 1, 2]]}}, {"model": {"vocab": [[3, 0.5]]}},
     {"model": {"vocab": [[[], 0.5]]}}, {"model": {"vocab": {"a": True}}},
     {"model": {"vocab": {"a": 1.0}}}, {"model": {"vocab": {"a": -1}}},
     {"model": {"vocab": {}}, "added_tokens": 3},
     {"model": {"vocab": {}}, "added_tokens": ["a"]},
     {"model": {"vocab": {}}, "added_tokens": [{"id": 1}]},
     {"model": {"vocab": {}}, "added_tokens": [{"id": "1", "content": "a"}]},
     {"model": {"vocab": {}}, "added_tokens": [{"id": 1, "content": 5}]}],
)  # fmt: skip
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*not a tokenizer"):
        tokens_of(tmp_path)
    layout = layout_of(**{"tokenizer.json": content})
    with pytest.raises(CheckpointError):
        adapted(layout, Changes(added_tokens={"x": 9}))


def test_tokens_come_from_the_first_file_there_is(tmp_path: Path) -> None:
    assert tokens_of(tmp_path) == {}
    (tmp_path / "added_tokens.json").write_text('{"<x>": 3}')
    assert tokens_of(tmp_path) == {}
    (tmp_path / "vocab.txt").write_bytes("[PAD]\r\nä\n##b\n".encode())
    assert tokens_of(tmp_path) == {"[PAD]": 0, "ä": 1, "##b": 2, "<x>": 3}
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    assert tokens_of(tmp_path) == {"a": 0, "<x>": 3}
    scores = {"model": {"vocab": [["p", -1.0], ["q", 0]]}, "added_tokens": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(scores))
    assert tokens_of(tmp_path) == {"p": 0, "q": 1}
    (tmp_path / "tokenizer.json").unlink()
    for text in ("[]", '["a"]', '{"a": "0"}', '{"a": -1}'):
        (tmp_path / "vocab.json").write_text(text)
        with pytest.raises(CheckpointError):
            tokens_of(tmp_path)


def test_the_vocabulary_of_a_folder(tmp_path: Path) -> None:
    state = StateDict(
        {
            "model.embed_tokens.weight": torch.zeros(4, 2),
            "lm_head.weight": torch.zeros(4, 2),
            "model.layers.0.mlp.up_proj.weight": torch.zeros(4, 2),
        },
        "state",
    )
    opened = []

    def opening() -> StateDict:
        opened.append(1)
        return state

    assert vocabulary_of(tmp_path, opening) is None
    assert not opened
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    found = vocabulary_of(tmp_path, opening)
    assert found is not None
    assert (dict(found.tokens), found.rows) == ({"a": 0, "b": 1}, 4)
    assert found.tensors == ("lm_head.weight", "model.embed_tokens.weight")


def test_the_tokens_of_a_table() -> None:
    content = {
        "model": {"vocab": {"a": 0}},
        "added_tokens": [{"id": 1, "content": "b", "x": 1}],
    }
    assert of_tokenizer(content, "") == {"a": 0, "b": 1}


def test_two_tokens_of_one_id_cannot_be_extended() -> None:
    """The library keeps one of them, or gives the other another id than its file says."""
    twice = {"model": {"vocab": {"a": 0, "b": 0}}}
    added = [{"id": 1, "content": "<s>"}, {"id": 1, "content": "<t>"}]
    more = {"model": {"vocab": {"a": 0}}, "added_tokens": added}
    good = {"model": {"vocab": {"a": 0}}, "added_tokens": added[:1]}
    for content, ids in ((twice, {"x": 1}), (more, {"x": 2}), (good, {"x": 1})):
        with pytest.raises(CheckpointError, match="by one id"):
            adapted(layout_of(**{"tokenizer.json": content}), Changes(added_tokens=ids))
    result = adapted(
        layout_of(**{"tokenizer.json": good}), Changes(added_tokens={"x": 2})
    )
    tokens = of_tokenizer(json.loads(result.files["tokenizer.json"]), "")
    assert tokens == {"a": 0, "<s>": 1, "x": 2}


@pytest.mark.parametrize(
    ("config", "layers", "wanted"),
    [
        ({"num_hidden_layers": 1, "layer_types": ["full"], "architectures": ["X"]}, 3,
         {"num_hidden_layers": 3, "layer_types": ["full"] * 3, "architectures": ["X"]}),
        ({"num_hidden_layers": 2, "eos_token_id": [3, 3, 3]}, 1,
         {"num_hidden_layers": 1, "eos_token_id": [3, 3, 3]}),
    ],
)  # fmt: skip
def test_lists_of_layers_grow_with_them(config, layers, wanted) -> None:
    layout = layout_of(**{"config.json": config})
    result = adapted(layout, Changes(layers=layers))
    assert json.loads(result.files["config.json"]) == wanted


def test_files_are_read_where_they_lie(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"dtype": "float32"}')
    layout = Layout(family="transformers", files={"config.json": file})
    assert adapted(layout, Changes(dtype="float32")) == layout
    result = adapted(layout, Changes(dtype="float16"))
    assert json.loads(result.files["config.json"]) == {"dtype": "float16"}
    file.write_text("[]")
    with pytest.raises(CheckpointError, match=f"{file} holds a list"):
        adapted(layout, Changes(dtype="float16"))
