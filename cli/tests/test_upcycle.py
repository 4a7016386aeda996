"""``mtk upcycle``; what it calls is tested in the plugin mtk-adapters-moe."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HIDDEN = """
import sys
sys.modules["mtk_adapters_moe"] = None
from mtk_cli.main import run
sys.argv = ["mtk", "upcycle", "--donor", "a", "--expert", "a", "-o", "out"]
run()
"""


@pytest.fixture
def dense(toy, monkeypatch):
    """Two small dense models with a tokenizer, in the current folder."""
    pytest.importorskip("mtk_adapters_moe")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    vocab = {"<s>": 0, "</s>": 1, " ": 2}
    vocab |= {chr(97 + i): 3 + i for i in range(26)}
    for name in ("a", "b"):
        torch.manual_seed(len(vocab) + ord(name))
        transformers.LlamaForCausalLM(config).save_pretrained(toy / name)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=[])),
            bos_token="<s>",
        ).save_pretrained(toy / name)
    return toy


def config(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


MODELS = ["--donor", "a", "--expert", "a", "--expert", "b"]


def test_from_options(mtk, dense):
    prompts = ["--prompt", "0=abc", "--prompt", "1=x y", "--negative-prompt", "1=q"]
    outcome = mtk("upcycle", *MODELS, *prompts, "-p", "gate=cheap_embed", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert "out: mixtral, 2 experts, " in outcome.out
    assert "gate=cheap_embed top_k=2" in outcome.out
    assert config(dense / "out")["num_local_experts"] == 2
    manifest = json.loads((dense / "out" / "manifest.json").read_text())
    assert manifest["upcycle"]["prompts"] == [["abc"], ["x y"]]
    assert manifest["upcycle"]["negative_prompts"] == [[], ["q"]]
    again = mtk("upcycle", *MODELS, *prompts, "-o", "out")
    assert again.code == 2
    assert "exists" in again.err


def test_as_json_with_other_options(mtk, dense):
    words = ["--family", "qwen2_moe", "--dtype", "bfloat16", "--shared-expert", "b"]
    data = mtk(
        "upcycle", *MODELS, *words, "-p", "gate=random", "-p", "top_k=1", "--json",
        "-o", "out",
    ).json  # fmt: skip
    assert (data["schema"], data["path"], data["family"]) == (1, "out", "qwen2_moe")
    assert data["params"]["top_k"] == 1
    assert data["warnings"] == []
    found = config(dense / "out")
    assert (found["dtype"], found["shared_expert_intermediate_size"]) == (
        "bfloat16",
        12,
    )


def test_from_a_recipe(mtk, dense):
    (dense / "moe.yml").write_text(
        "base_model: a\nexperts:\n"
        "- {source_model: a, positive_prompts: [abc]}\n"
        "- {source_model: b, positive_prompts: [x]}\n"
        "- {source_model: a, positive_prompts: [hello]}\n"
        "experts_per_token: 1\n"
    )
    outcome = mtk("upcycle", "moe.yml", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert "gate=hidden top_k=1" in outcome.out
    assert "read as mergekit-moe does" in outcome.err
    assert "warning: 3 experts are no power of two" in outcome.err
    quiet = mtk("upcycle", "moe.yml", "-p", "seed=1", "-q", "--overwrite", "-o", "out")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a recipe, or --donor"),
        (["--donor", "a"], "give a recipe, or --donor"),
        (["moe.yml", "--donor", "a"], "leave out --donor"),
        (["moe.yml"], "line 2: the file has no setting 'expert'"),
        (["gone.yml"], "gone.yml"),
        ([*MODELS], "needs prompts for every expert"),
        ([*MODELS, "--prompt", "2=abc"], "number of an expert, 0 to 1"),
        ([*MODELS, "--prompt", "abc"], "write N=TEXT"),
        ([*MODELS, "-p", "gates=random"], "did you mean 'gate'"),
        ([*MODELS, "-p", "output=x"], "no parameter 'output'"),
        ([*MODELS, "-p", "gate=magic"], "must be one of"),
        ([*MODELS, "-p", "gate=random", "-p", "noise_scale=[1.0]"], "for 2 experts"),
        ([*MODELS, "-p", "gate=random", "--family", "mixtrl"], "did you mean 'mixtral'"),
        (["--donor", "z", "--expert", "a", "-p", "gate=random", "-p", "top_k=1"], "z"),
    ],
)  # fmt: skip
def test_refusals(mtk, dense, arguments, words):
    (dense / "moe.yml").write_text("base_model: a\nexpert: []\n")
    outcome = mtk("upcycle", *arguments, "-o", "out")
    assert outcome.code == 2, outcome.out
    assert words in outcome.err
    assert len(outcome.err.splitlines()) <= 3
    assert not (dense / "out").exists()


def test_without_the_plugin(toy):
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "mtk-adapters-moe, which is not installed" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
