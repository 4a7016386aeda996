"""Make the reference results: mergekit itself, on small models.

Run it with the Python of an environment that has mergekit 0.1.5::

    HF_HUB_OFFLINE=1 PYTHON tests/make_reference.py

It runs every ``reference/*.yml`` and writes the result beside it, in float32; and random
recipes, which it writes with a print of each tensor into ``reference/random.json``. The
tests make the same models with :func:`write_models` and run the same files through mtk.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "reference"
RECIPES = 60
HIDDEN, INNER, LAYERS, TOKENS = 16, 24, 4, 40
SEEDS = {"base": 0, "a": 1, "b": 2, "c": 3}


def shapes(tokens: int = TOKENS) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a llama with two heads, one of them for keys."""
    found = {"model.embed_tokens.weight": (tokens, HIDDEN)}
    for layer in range(LAYERS):
        for name, shape in {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        }.items():
            found[f"model.layers.{layer}.{name}.weight"] = shape
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (tokens, HIDDEN)}


def tensors(name: str) -> dict[str, np.ndarray]:
    """The base, or an expert near it, of which a third of the entries are the base's."""
    base, own = np.random.RandomState(0), np.random.RandomState(SEEDS[name])
    result = {}
    for tensor, shape in shapes().items():
        value = base.standard_normal(shape) * 0.05 + ("norm" in tensor)
        if name != "base":
            change = own.standard_normal(shape) * 0.02
            value = value + np.where(own.random_sample(shape) < 1 / 3, 0, change)
        result[tensor] = value.astype(np.float32)
    return result


def write_models(folder: Path) -> None:
    """``base``, experts ``a``, ``b``, ``c``, and three others.

    ``twin`` equals ``a``, ``more`` has more tokens, ``adapter`` is a LoRA.
    """
    for name in SEEDS:
        _write(folder / name, tensors(name), [f"w{i}" for i in range(TOKENS)])
    _write(folder / "twin", tensors("a"), [f"w{i}" for i in range(TOKENS)])
    more, random = tensors("a"), np.random.RandomState(9)
    # Two tokens change places and three are new.
    words = [f"w{i}" for i in (1, 0, *range(2, TOKENS))] + ["new0", "new1", "new2"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = random.standard_normal((3, HIDDEN)).astype(np.float32) * 0.05
        more[name] = np.concatenate([more[name], rows])
    _write(folder / "more", more, words)
    _write_adapter(folder / "adapter")


def _write(folder: Path, weights: dict[str, np.ndarray], words: list[str]) -> None:
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(words),
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": "w2",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def _write_adapter(folder: Path) -> None:
    """A PEFT LoRA of rank 2 on the query projections of all layers."""
    random, weights = np.random.RandomState(5), {}
    for layer in range(LAYERS):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for part, shape in {"A": (2, HIDDEN), "B": (HIDDEN, 2)}.items():
            value = random.standard_normal(shape).astype(np.float32) * 0.1
            weights[f"{prefix}.lora_{part}.weight"] = value
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main(names: list[str]) -> None:
    """Run mergekit on every recipe, or on those that are named."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write_models(Path(scratch))
        os.chdir(scratch)
        for path in sorted(HERE.glob("*.yml")):
            if not names or path.stem in names:
                _store(path, _merged(path, Path(scratch)))
                print(path.stem)
        if not names or "random" in names:
            _store_random(Path(scratch))


def fingerprint(values: list[float]) -> float:
    """One number for a tensor, in which every entry and its place count."""
    return math.fsum(value * math.cos(place) for place, value in enumerate(values))


def _store_random(scratch: Path) -> None:
    from importlib.metadata import version
    from random import Random

    import yaml
    from random_recipes import make
    from safetensors.torch import load_file

    random, found = Random(2026), []
    for number in range(RECIPES):
        path = scratch / f"random{number}.yml"
        path.write_text(yaml.safe_dump(make(random), sort_keys=False))
        out = _merged(path, scratch)
        prints = {}
        for file in sorted(out.glob("*.safetensors")):
            for name, tensor in load_file(file).items():
                prints[name] = round(fingerprint(tensor.flatten().tolist()), 8)
        found.append({"recipe": path.read_text(), "prints": prints})
    about = {"mergekit": version("mergekit"), "cases": found}
    (HERE / "random.json").write_text(json.dumps(about, indent=0) + "\n")


def _merged(path: Path, scratch: Path) -> Path:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    text, out = path.read_text(), scratch / "out" / path.stem
    if "\n---\n" in text:
        from click.testing import CliRunner
        from mergekit.scripts.multimerge import main as multi

        arguments = [str(path), "--out-path", str(out), "-I", str(scratch / "between")]
        arguments.append("--no-write-model-card")
        outcome = CliRunner().invoke(multi, arguments)
        if outcome.exception:
            raise outcome.exception
        return out
    options = MergeOptions(
        lora_merge_cache=str(scratch / "loras"),
        random_seed=0,
        quiet=True,
        write_model_card=False,  # a card would ask the Hub about the models
    )
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options
    )
    return out


def _store(path: Path, out: Path) -> None:
    from importlib.metadata import version

    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save

    found, dtypes = {}, set()
    for file in sorted(out.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            dtypes.add(str(tensor.dtype).removeprefix("torch."))
            found[name] = tensor.to(torch.float32).contiguous()
    config = json.loads((out / "config.json").read_text())
    about = {
        "mergekit": version("mergekit"),
        "dtypes": " ".join(sorted(dtypes)),
        "layers": str(config["num_hidden_layers"]),
        "tokens": str(config["vocab_size"]),
    }
    save(found, path.with_suffix(".safetensors"), metadata=about)


if __name__ == "__main__":
    main(sys.argv[1:])
