"""A tiny mT5 with a tiny tokenizer, and small data sets in the layout of the Hub's."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import MT5Config, MT5ForConditionalGeneration, PreTrainedTokenizerFast

from mtk.roots import note_root
from mtk.training import Regime
from mtk_tasks_crosslingual.cells import Cuts

SPECIAL = ("<pad>", "</s>")
# Rows for every split even after the cuts.
CUTS = Cuts(held_back=2, wiki_validation=2, wiki_test=2, xquad_validation=4)
REGIME = Regime(rate=1e-2, batch=4, steps=1, every=1, half=False)
PARAGRAPH = " ".join(f"palabra{i}" for i in range(30))


def save_base(folder, seed=0):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = MT5Config(
            vocab_size=258, d_model=16, d_kv=8, num_heads=2, d_ff=24, num_layers=1,
            num_decoder_layers=1, pad_token_id=0, eos_token_id=1,
            decoder_start_token_id=0, dropout_rate=0.1,
        )  # fmt: skip
        model = MT5ForConditionalGeneration(config)
        model.save_pretrained(folder)
        # As published, the output layer has weights of its own; the class ties new ones.
        file = folder / "model.safetensors"
        weights = load_file(file) | {"lm_head.weight": torch.randn(258, 16)}
        save_file(weights, file, {"format": "pt"})
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)


def write(root, name, rows):
    file = root / "data" / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def squad(name, count):
    return [
        {
            "id": f"{name}{i}",
            "title": "t",
            "context": f"In {i} came the king.",
            "question": f"When? {i}",
            "answers": {"text": [str(i), str(i)], "answer_start": [3, 3]},
        }
        for i in range(count)
    ]


def nli(count):
    return [
        {"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3}
        for i in range(count)
    ]


def article(i):
    return {
        "url": "u",
        "article": {
            "section_name": ["a", "b"],
            "document": [f"long text {i}", "other"],
            "summary": [f"text {i}", "o"],
        },
    }


def sense(count):
    return [
        {"target_word": "w", "context_1": f"a {i}", "context_2": "b", "label": i % 2}
        for i in range(count)
    ]


def tydiqa(count):
    languages = ("korean", "english", "thai", "arabic", "finnish")
    return [
        {
            "question_text": f"q {i}",
            "document_plaintext": "d",
            "language": languages[i % 5],
            "annotations": {"yes_no_answer": [("YES", "NO", "NONE")[i % 3], "NO"]},
        }
        for i in range(count)
    ]


def fill(root):
    """All data sets, a few rows of each."""
    write(root, "squad/train", squad("s", 6))
    write(root, "squad/validation", squad("v", 3))
    for language in ("ar", "de", "th"):
        write(root, f"xquad.{language}/all", squad("x", 6))
    spanish = [
        row | {"context": f"{PARAGRAPH} {i // 2}"}
        for i, row in enumerate(squad("x", 8))
    ]
    write(root, "xquad.es/all", spanish)
    for language in ("ar", "th", "en", "de"):
        for split, count in (("train", 5), ("validation", 3), ("test", 4)):
            write(root, f"xnli.{language}/{split}", nli(count))
    empty = {"url": "u", "article": {"section_name": [], "document": [], "summary": []}}
    for language in ("thai", "arabic", "english", "korean", "german"):
        rows = [article(0), empty, *(article(i) for i in range(1, 7))]
        write(root, f"wiki_lingua.{language}/train", rows)
    for split in ("train", "validation", "test"):
        write(root, f"xlwic.de/{split}", sense(4))
        write(root, f"xlwic.ko/{split}", sense(3))
    wic = [
        {"word": "w", "sentence1": "a", "sentence2": "b", "label": i % 2}
        for i in range(5)
    ]
    write(root, "wic/train", wic)
    write(root, "wic/validation", wic)
    write(root, "tydiqa/train", tydiqa(30))
    write(root, "tydiqa/validation", tydiqa(20))


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A root with a base and data; nothing is made in it."""
    root = tmp_path_factory.mktemp("filled")
    save_base(root / "base")
    fill(root)
    return root


@pytest.fixture
def opened(filled, tmp_path):
    """The track on that root."""
    from mtk_tasks_crosslingual.track import CrosslingualMt5

    cache = tmp_path / "cache"
    note_root(cache, filled)
    return CrosslingualMt5(
        cache=cache, seed=0, options={"micro": 2}, cuts=CUTS, regime=REGIME
    )
