"""Three llamas, made here, merged by the command, loaded and run by transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mtk_cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(60))]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tokenizer(words):
    """A tokenizer of whole words, with special tokens and a chat template."""
    model = tokenizers.models.WordLevel(
        {word: number for number, word in enumerate(words)}, unk_token="<unk>"
    )
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
    )


def make(folder: Path, seed: int, *, tied: bool, words=WORDS, near=None, **saving):
    """A llama of two layers; near another one, if there is one."""
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    if near is not None:
        start = near.state_dict()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if tensor.shape == start[name].shape:
                    tensor.mul_(0.1).add_(start[name].float())
    model = model.bfloat16().eval()
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(folder, **saving)
    tokenizer(words).save_pretrained(folder)
    return model


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["merge", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def load(folder: Path):
    """As a user does, and with nothing missing or left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="auto"
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], (problem, report[problem])
    return model.eval()


def generate(model, folder: Path) -> torch.Tensor:
    words = transformers.AutoTokenizer.from_pretrained(folder)
    given = words("w3 w4 w5", return_tensors="pt").input_ids
    assert given[0, -3:].tolist() == [6, 7, 8]
    made = model.generate(given, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert made.shape == (1, given.shape[1] + 6)
    return made


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_merge_loads_and_generates(tmp_path: Path, tied: bool, method: str) -> None:
    base = make(tmp_path / "base", 0, tied=tied)
    one = make(tmp_path / "math", 1, tied=tied, near=base)
    two = make(tmp_path / "code", 2, tied=tied, near=base)
    out = tmp_path / "merged"
    experts = ["--expert", tmp_path / "math", "--expert", tmp_path / "code"]
    said = run("-m", method, "--base", tmp_path / "base", *experts, "-o", out)
    assert f"config and tokenizer of {tmp_path / 'base'}" in said
    merged = load(out)
    assert merged.dtype == torch.bfloat16
    stored = load_file(out / "model.safetensors")
    assert ("lm_head.weight" in stored) == (not tied)
    assert merged.config.tie_word_embeddings == tied
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    states = [model.state_dict() for model in (merged, one, two, base)]
    for name, tensor in states[0].items():
        if method == "linear":
            mean = (states[1][name].float() + states[2][name].float()) / 2
            assert torch.equal(tensor, mean.bfloat16()), name
    if method == "ties":
        changed = [n for n, t in states[0].items() if not torch.equal(t, states[3][n])]
        assert changed
    generate(merged, out)
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert words.chat_template == TEMPLATE
    assert words.get_vocab() == {word: number for number, word in enumerate(WORDS)}
    assert merged.generation_config.max_new_tokens == 5
    assert {"README.md", "manifest.json", "config.json"} <= {
        file.name for file in out.iterdir()
    }


def test_shards_come_in_and_go_out(tmp_path: Path) -> None:
    """The same weights, whether the inputs, or the output, lie in one file or in many."""
    base = make(tmp_path / "base", 0, tied=False, max_shard_size="10KB")
    for seed, name in enumerate(("math", "code"), 1):
        make(tmp_path / name, seed, tied=False, near=base, max_shard_size="10KB")
    assert len(list((tmp_path / "math").glob("model-*.safetensors"))) > 2
    (tmp_path / "recipe.toml").write_text(
        'method = "task_arithmetic"\nbase = "base"\nexperts = ["math", "code"]\n'
        'shard_size = "8kB"\nparams.scale = 0.5\n'
    )
    out, single = tmp_path / "out", tmp_path / "single.safetensors"
    run(tmp_path / "recipe.toml", out)
    run(tmp_path / "recipe.toml", single)
    names = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(names.values())) > 2
    merged = load(out)
    whole = load_file(single)
    state = merged.state_dict()
    assert set(whole) == set(state) == set(names)
    assert all(torch.equal(state[name], whole[name]) for name in whole)
    generate(merged, out)
    # What was written is read again, shards and manifest and all.
    again = tmp_path / "again"
    run("-m", "linear", "--expert", out, "--expert", tmp_path / "math", "-o", again)
    load(again)


def test_the_union_of_unlike_vocabularies(tmp_path: Path) -> None:
    base = make(tmp_path / "base", 0, tied=False)
    more = [*WORDS, "extra0", "extra1"]
    make(tmp_path / "math", 1, tied=False, near=base)
    long = make(tmp_path / "code", 2, tied=False, near=base, words=more)
    experts = ["--expert", tmp_path / "math", "--expert", tmp_path / "code"]
    given = ["-m", "linear", *experts]
    refused = CliRunner().invoke(
        cli, ["merge", *map(str, given), "-o", str(tmp_path / "no")]
    )
    assert refused.exit_code == 2
    assert "vocabular" in refused.stderr
    assert not (tmp_path / "no").exists()
    out = tmp_path / "union"
    said = run(*given, "--vocabulary", "union", "-o", out)
    assert "vocabulary: union" in said
    merged = load(out)
    assert merged.config.vocab_size == len(more)
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert words.get_vocab() == {word: number for number, word in enumerate(more)}
    name = "model.embed_tokens.weight"
    # Rows that only one model has are that model's.
    assert torch.equal(
        merged.state_dict()[name][-2:], long.state_dict()[name][len(WORDS) :]
    )
    generate(merged, out)
    assert words("extra1 w1").input_ids[-2:] == [len(more) - 1, 4]


def test_a_union_made_in_a_stage_reaches_config_and_tokenizer(tmp_path: Path) -> None:
    base = make(tmp_path / "base", 0, tied=True)
    more = [*WORDS, "extra0"]
    make(tmp_path / "math", 1, tied=True, near=base)
    make(tmp_path / "code", 2, tied=True, near=base, words=more)
    (tmp_path / "recipe.toml").write_text(
        'method = "slerp"\nexperts = ["both", "code"]\n[[stage]]\nname = "both"\n'
        'method = "linear"\nexperts = ["math", "base", "code"]\nvocabulary = "union"\n'
        'dtype = "float32"\n'
    )
    out = tmp_path / "out"
    refused = CliRunner().invoke(
        cli, ["merge", str(tmp_path / "recipe.toml"), str(out)]
    )
    assert refused.exit_code == 2
    assert "has dtype float32 in both, bfloat16" in refused.stderr
    text = (tmp_path / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text('dtype = "float16"\n' + text)
    said = run(tmp_path / "recipe.toml", out)
    assert "both: vocabulary: union" in said
    assert f"config and tokenizer of {tmp_path / 'math'}" in said
    merged = load(out)
    assert merged.dtype == torch.float16
    assert merged.config.vocab_size == len(more)
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert words("extra0").input_ids[-1] == len(more) - 1
    generate(merged, out)
