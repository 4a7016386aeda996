"""A tiny llama, a tiny tokenizer, a task file and a JSONL file, all made on the spot."""

from __future__ import annotations

import json
import os

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SPECIAL = ("<pad>", "<s>", "</s>")
COLOURS = ("red", "green", "blue")
TASK = """
task: tiny_colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["red", "green", "blue"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
GENERATING = """
task: tiny_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{word}}}}"
generation_kwargs: {{until: ["z"], max_gen_toks: 3, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
TRACK = """
name = "colours"
base = "base"
multitask = "one"

[[held_in]]
name = "colour"
expert = "one"
task = "tiny_colours"
include_path = "tasks"
metrics = ["acc", "acc_norm"]

[[held_in]]
name = "capitals"
expert = "two"
data = "capitals.jsonl"

[[generalization]]
name = "words"
task = "tiny_words"
include_path = "tasks"
metrics = ["exact_match"]

[[ability]]
name = "again"
task = "tiny_colours"
include_path = "tasks"
metrics = ["acc"]
limit = 7
"""


def save_tokenizer(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)


def llama(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def t5(seed):
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=259, d_model=16, d_kv=8, num_heads=2, d_ff=24, num_layers=1,
        num_decoder_layers=1, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def write_jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with the models base, one, two and small, tasks, data and a track file."""
    folder = tmp_path_factory.mktemp("tracks")
    with torch.random.fork_rng():
        base = llama(0)
        base.save_pretrained(folder / "base")
        for seed, name in enumerate(("one", "two"), 1):
            torch.manual_seed(seed)
            expert = llama(0)
            for parameter in expert.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            expert.save_pretrained(folder / name)
        t5(0).save_pretrained(folder / "small")
    for name in ("base", "one", "two", "small"):
        save_tokenizer(folder / name)
    (folder / "tasks").mkdir()
    questions = folder / "questions.jsonl"
    write_jsonl(
        questions,
        [
            {"question": f"What has number {i}?", "answer": i % 3, "word": "abc"[i % 3]}
            for i in range(24)
        ],
    )
    values = {"file": questions, "cache": folder / "datasets"}
    (folder / "tasks" / "tiny.yaml").write_text(TASK.format(**values))
    (folder / "tasks" / "words.yaml").write_text(GENERATING.format(**values))
    write_jsonl(
        folder / "capitals.jsonl",
        [
            {
                "prompt": f"Colour {i}:",
                "target": COLOURS[i % 3],
                "choices": list(COLOURS),
            }
            for i in range(20)
        ],
    )
    (folder / "track.toml").write_text(TRACK)
    return folder
