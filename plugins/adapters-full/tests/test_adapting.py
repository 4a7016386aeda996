"""Configs and tokenizers that fit what a merge changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from mtk.adapters import Changes, Layout
from mtk.errors import CheckpointError
from mtk_adapters_full import full

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8,
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 1, "num_key_value_heads": 1, "torch_dtype": "float32",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def transformers_layout(config: dict[str, Any], **files: Any) -> Layout:
    content = {"config.json": config, **files}
    return Layout(
        family="transformers",
        files={name: json.dumps(value).encode() for name, value in content.items()},
    )


def config_of(layout: Layout, name: str = "config.json") -> Any:
    content = layout.files[name]
    assert isinstance(content, bytes)
    return json.loads(content)


def test_no_changes_change_nothing() -> None:
    layout = transformers_layout(LLAMA)
    assert full.adapt(layout, Changes()) == layout


def test_the_dtype_is_said_wherever_it_was_said() -> None:
    nested = {"dtype": "float32", "text_config": {"torch_dtype": "float32"}, "a": 1}
    found = config_of(
        full.adapt(transformers_layout(nested), Changes(dtype="bfloat16"))
    )
    assert found["dtype"] == found["text_config"]["torch_dtype"] == "bfloat16"
    assert "torch_dtype" not in found
    silent = config_of(full.adapt(transformers_layout({}), Changes(dtype="float16")))
    assert silent == {"torch_dtype": "float16"}
    plain = Layout(files={"config.json": b"{}"})
    assert full.adapt(plain, Changes(dtype="float16")) == plain


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"vocab_size": 8}, {"vocab_size": 9}),
        (
            {"text_config": {"vocab_size": 8}, "audio_config": {"vocab_size": 5}},
            {"text_config": {"vocab_size": 9}, "audio_config": {"vocab_size": 5}},
        ),
        (
            {"vocab_size": 8, "text_config": {"vocab_size": 8}},
            {"vocab_size": 9, "text_config": {"vocab_size": 9}},
        ),
    ],
)
def test_rows_are_those_of_the_language_model(config, wanted) -> None:
    layout = full.adapt(transformers_layout(config), Changes(rows=9))
    assert config_of(layout) == wanted


def test_layers_are_counted_with_the_lists_that_have_one_entry_each() -> None:
    config = {
        "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "eos": [1, 2],
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="eos differs from layer to layer"):
        full.adapt(transformers_layout(config), Changes(layers=3))
    del config["eos"]
    found = config_of(full.adapt(transformers_layout(config), Changes(layers=3)))
    assert found == {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    inner = {
        "text_config": {"num_hidden_layers": 2},
        "vision_config": {"num_layers": 2},
    }
    found = config_of(full.adapt(transformers_layout(inner), Changes(layers=5)))
    assert found["text_config"]["num_hidden_layers"] == 5
    assert found["vision_config"]["num_layers"] == 2
    assert config_of(
        full.adapt(transformers_layout({"n_layer": 2}), Changes(layers=4))
    ) == {"n_layer": 4}


def test_ties_are_said() -> None:
    config = {"text_config": {"tie_word_embeddings": False}}
    found = config_of(full.adapt(transformers_layout(config), Changes(tied=True)))
    assert found["tie_word_embeddings"] is True
    assert found["text_config"]["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        (Layout(), Changes(rows=3), "a plain model cannot be given another number of emb"),
        (Layout(family="diffusers"), Changes(layers=3), "diffusers model cannot be given"),
        (Layout(family="open_clip"), Changes(tokenizer=Layout()), "another tokenizer"),
        (transformers_layout({}), Changes(rows=3), "no vocab_size"),
        (transformers_layout({}), Changes(layers=3), "cannot be stacked"),
        (transformers_layout({}), Changes(tokenizer=Layout()), "has none"),
        (transformers_layout({}), Changes(added_tokens={"x": 1}), "no tokenizer files"),
        (
            transformers_layout({"num_layers": 2, "is_encoder_decoder": True}),
            Changes(layers=3),
            "cannot be stacked",
        ),
        (Layout(family="transformers", files={"config.json": b"[]"}), Changes(rows=1), "JSON"),
    ],
)  # fmt: skip
def test_what_a_config_cannot_say_is_refused(layout, changes, words) -> None:
    with pytest.raises(CheckpointError, match=words) as refused:
        full.adapt(layout, changes)
    assert len(str(refused.value).splitlines()) <= 3


def test_another_tokenizer_comes_with_its_special_ids() -> None:
    ours = transformers_layout(
        {"bos_token_id": 1, "eos_token_id": [2, 3], "hidden_size": 4},
        **{
            "tokenizer.json": {"mine": 1},
            "merges.txt": 1,
            "generation_config.json": {"eos_token_id": 2, "temperature": 0.5},
            "preprocessor_config.json": {},
        },
    )
    other = transformers_layout(
        {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 7, "hidden_size": 9},
        **{"tokenizer.json": {"theirs": 1}, "chat_template.jinja": "x"},
        **{"generation_config.json": {"temperature": 0.1}},
    )
    layout = full.adapt(ours, Changes(tokenizer=other))
    assert set(layout.files) == {
        "config.json", "generation_config.json", "preprocessor_config.json",
        "tokenizer.json", "chat_template.jinja",
    }  # fmt: skip
    assert config_of(layout, "tokenizer.json") == {"theirs": 1}
    assert config_of(layout) == {"bos_token_id": 5, "eos_token_id": 6, "hidden_size": 4}
    assert config_of(layout, "generation_config.json") == {
        "eos_token_id": 6,
        "temperature": 0.5,
    }


def tokenizer(kind: str, vocab: dict[str, int], added: dict[str, int]) -> Any:
    """A tokenizer of the library, and its file's content."""
    library = pytest.importorskip("tokenizers")
    models = library.models
    if kind == "BPE":
        model = models.BPE(vocab=vocab, merges=[])
    elif kind == "WordLevel":
        model = models.WordLevel(vocab=vocab, unk_token="a")
    else:
        pairs = [(token, -1.0) for token in sorted(vocab, key=vocab.__getitem__)]
        model = models.Unigram(pairs, unk_id=0)
    made = library.Tokenizer(model)
    made.add_special_tokens(sorted(added, key=added.__getitem__))
    assert all(made.token_to_id(token) == number for token, number in added.items())
    return json.loads(made.to_str())


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "Unigram"])
def test_added_tokens_get_the_ids_that_were_planned(kind: str) -> None:
    content = tokenizer(kind, {"a": 0, "b": 1}, {"<s>": 2})
    layout = transformers_layout(LLAMA, **{"tokenizer.json": content})
    added = {"<|user|>": 3, "Ġword": 4}
    changed = full.adapt(layout, Changes(added_tokens=added))
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer.from_str(changed.files["tokenizer.json"].decode())
    vocab = {"a": 0, "b": 1, "<s>": 2, **added}
    assert made.get_vocab() == vocab
    assert [made.id_to_token(number) for number in range(5)] == list(vocab)
    flags = {t["content"]: t["special"] for t in config_of(changed, "tokenizer.json")["added_tokens"]}  # fmt: skip
    assert flags == {"<s>": True, "<|user|>": True, "Ġword": False}


def test_ids_with_holes_are_kept_by_the_vocabulary_itself() -> None:
    library = pytest.importorskip("tokenizers")
    content = tokenizer("BPE", {"a": 0, "b": 5}, {})
    layout = transformers_layout(LLAMA, **{"tokenizer.json": content})
    changed = full.adapt(layout, Changes(added_tokens={"<x>": 6, "<y>": 9}))
    made = library.Tokenizer.from_str(changed.files["tokenizer.json"].decode())
    assert made.get_vocab() == {"a": 0, "b": 5, "<x>": 6, "<y>": 9}
    content = tokenizer("Unigram", {"a": 0, "b": 1}, {})
    layout = transformers_layout(LLAMA, **{"tokenizer.json": content})
    with pytest.raises(CheckpointError, match="'<y>' cannot have the id 9"):
        full.adapt(layout, Changes(added_tokens={"<y>": 9}))


def test_other_tokenizer_files_announce_the_tokens_too() -> None:
    announced = {"added_tokens_decoder": {"2": {"content": "<s>"}}}
    layout = transformers_layout(
        LLAMA, **{"tokenizer_config.json": announced, "vocab.json": {"a": 0}}
    )
    changed = full.adapt(layout, Changes(added_tokens={"<x>": 3}))
    assert config_of(changed, "added_tokens.json") == {"<x>": 3}
    found = config_of(changed, "tokenizer_config.json")["added_tokens_decoder"]
    assert found["3"]["content"] == "<x>"
    assert found["2"] == {"content": "<s>"}
    again = full.adapt(changed, Changes(added_tokens={"<y>": 4}))
    assert config_of(again, "added_tokens.json") == {"<x>": 3, "<y>": 4}


def folder_with(place: Path, rows: int = 8, **files: Any) -> Path:
    place.mkdir(exist_ok=True)
    tensors = {
        "model.embed_tokens.weight": torch.zeros(rows, 4),
        "lm_head.weight": torch.zeros(rows, 4),
        "model.position_embeddings.weight": torch.zeros(rows, 4),
        "model.layers.0.mlp.weight": torch.zeros(rows, 4),
    }
    save_file(tensors, place / "model.safetensors")
    for name, content in {"config.json": LLAMA | {"vocab_size": rows}, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (place / name).write_text(text, encoding="utf-8")
    return place


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "Unigram"])
def test_the_vocabulary_is_what_the_library_says(tmp_path: Path, kind: str) -> None:
    library = pytest.importorskip("tokenizers")
    content = tokenizer(kind, {"a": 0, "é": 1}, {"<s>": 2})
    folder = folder_with(tmp_path / "m", **{"tokenizer.json": content})
    found = full.vocabulary(folder)
    assert found is not None
    made = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert dict(found.tokens) == made.get_vocab()
    assert found.rows == 8
    assert found.tensors == ("lm_head.weight", "model.embed_tokens.weight")


def test_vocabularies_of_older_files_are_read(tmp_path: Path) -> None:
    words = folder_with(tmp_path / "words", **{"vocab.txt": "[PAD]\nä\n##b\n"})
    assert full.vocabulary(words).tokens == {"[PAD]": 0, "ä": 1, "##b": 2}
    pieces = folder_with(
        tmp_path / "pieces",
        **{"vocab.json": {"a": 0}, "added_tokens.json": {"<x>": 1}},
    )
    assert full.vocabulary(pieces).tokens == {"a": 0, "<x>": 1}
    assert full.vocabulary(folder_with(tmp_path / "none")) is None
    assert full.vocabulary(pieces / "model.safetensors") is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"model": {}}', '{"model": {"vocab": 3}}', "[" * 100_000,
     '{"model": {"vocab": {"a": -1}}}', '{"model": {"vocab": {"a": "1"}}}',
     '{"model": {"vocab": {}}, "added_tokens": [{"id": []}]}'],
)  # fmt: skip
def test_a_damaged_tokenizer_is_refused_by_name(tmp_path: Path, content: str) -> None:
    folder = folder_with(tmp_path / "m", **{"tokenizer.json": content})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as refused:
        full.vocabulary(folder)
    assert len(str(refused.value).splitlines()) <= 3
