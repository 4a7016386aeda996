"""Models with unlike tokenizers, merged into a folder that model and tokenizer load from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

import mtk
from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("quiet")
BASE = ["<s>", "</s>", "a", "b", "c"]
FIRST = ["<s>", "</s>", "a", "b", "c", "x"]
SECOND = ["<s>", "</s>", "c", "a", "y", "x", "<|user|>"]


def save(folder: Path, seed: int, tokens: list[str], rows: int, randomise: Any) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    randomise(transformers.LlamaForCausalLM(config), seed).save_pretrained(folder)
    words = {token: i for i, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def models(tmp_path: Path, randomise: Any) -> list[Path]:
    return [
        save(tmp_path / "base", 1, BASE, 6, randomise),
        save(tmp_path / "first", 2, FIRST, 6, randomise),
        save(tmp_path / "second", 3, SECOND, 8, randomise),
    ]


def load(folder: Path) -> tuple[Any, dict[str, int]]:
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(found.values()), found
    return model, transformers.AutoTokenizer.from_pretrained(folder).get_vocab()


def row(loaded: tuple[Any, dict[str, int]], token: str, head: bool) -> Any:
    model, vocab = loaded
    table = model.lm_head if head else model.get_input_embeddings()
    return table.weight[vocab[token]].detach() if token in vocab else None


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("policy", ["base", "union"])
def test_each_token_is_the_average_of_its_own_rows(
    models, average, tmp_path, policy, head
) -> None:
    target = tmp_path / "merged"
    mtk.merge(
        average, base=models[0], experts=models[1:], vocabulary=policy, output=target
    )
    merged, sources = load(target), [load(folder) for folder in models]
    tokens = BASE if policy == "base" else [*BASE, "x", "y", "<|user|>"]
    assert merged[1] == {token: i for i, token in enumerate(tokens)}
    config = json.loads((target / "config.json").read_text())
    assert config["vocab_size"] == merged[0].lm_head.weight.shape[0]
    assert config["vocab_size"] == (6 if policy == "base" else 8)
    for token in tokens:
        base, *experts = (row(source, token, head) for source in sources)
        known = [each for each in experts if each is not None]
        filling = base if base is not None else sum(known) / len(known)
        rows = [filling if each is None else each for each in experts]
        torch.testing.assert_close(row(merged, token, head), sum(rows) / 2)


def test_without_a_policy_the_difference_is_named(models, average, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"'x' has none in .*base"):
        mtk.merge(average, base=models[0], experts=models[1:], output=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_equal_tokenizers_need_no_policy(models, average, tmp_path, randomise) -> None:
    twin = save(tmp_path / "twin", 9, BASE, 6, randomise)
    mtk.merge(average, experts=[models[0], twin], output=tmp_path / "merged")
    assert load(tmp_path / "merged")[1] == load(models[0])[1]
