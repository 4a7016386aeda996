"""Which files of a repository a merge reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WEIGHTS = ".safetensors"
_COMPANIONS = (".json", ".jinja", ".model", ".spm", ".tiktoken", ".bpe", ".txt")
_PAPERS = {"README.md", "LICENSE", "LICENSE.md", "NOTICE", "NOTICE.md"}
_TEMPLATES = "additional_chat_templates"
_PIPELINE = "model_index.json"
# The names under which libraries store weights; other files beside them are second
# copies (Mistral's ``consolidated``, merged single files).
_USUAL = {
    "model", "diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights",
    "open_clip_model",
}  # fmt: skip
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_OTHER_WEIGHTS = re.compile(r"\.(bin|pt|pth|ckpt|gguf|msgpack|h5|onnx)$")
# What a pipeline would load where a component has no safetensors.
_PICKLED = re.compile(r"^(diffusion_)?pytorch_model[\w.-]*\.bin$")


def choose(names: Sequence[str], repo: str) -> list[str]:
    """Of a repository's files, those that a merge reads.

    Weights come from the top level; from the folders below it where the repository is a
    pipeline or has none at the top. Variants (``model.fp16.safetensors`` beside
    ``model.safetensors``) and second copies are left out.
    """
    folders: dict[str, list[str]] = {"": []}
    for name in names:
        place, _, file = name.rpartition("/")
        if "/" not in place and "\\" not in name:
            folders.setdefault(place, []).append(file)
    weights = {place: _weights(files) for place, files in folders.items()}
    pipeline = _PIPELINE in folders[""]
    used = {
        place
        for place, found in weights.items()
        if found and bool(place) == (pipeline or not weights[""])
    }
    components = set(folders) - {""} if pipeline else used
    for place in sorted(components - used):
        if pickled := [file for file in folders[place] if _PICKLED.search(file)]:
            raise _refusal(f"{repo}/{place}", pickled)
    if not used:
        raise _refusal(repo, [file for file in names if _OTHER_WEIGHTS.search(file)])
    result = []
    for place, files in folders.items():
        chosen = weights[place] if place in used else []
        if place in used | components | {"", _TEMPLATES}:
            chosen = chosen + _companions(files, chosen)
        elif "config.json" in files:
            chosen = ["config.json"]
        result += [f"{place}/{file}" if place else file for file in chosen]
    return sorted(result)


def _weights(files: Sequence[str]) -> list[str]:
    found = {file: _stem(file) for file in files if file.endswith(_WEIGHTS)}
    stems = set(found.values())
    main = {
        file: stem
        for file, stem in found.items()
        if "." not in stem or stem.rpartition(".")[0] not in stems
    }
    return [file for file, stem in main.items() if stem in _USUAL] or list(main)


def _stem(file: str) -> str:
    return _SHARD.sub("", file.removesuffix(_WEIGHTS))


def _companions(files: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Configs, tokenizer and templates, the card, and the index of these weights."""
    indexes = {f"{_stem(file)}{_WEIGHTS}.index.json" for file in weights}
    return [
        file
        for file in files
        if (file.endswith(_COMPANIONS) or file in _PAPERS)
        and (".index." not in file or file in indexes)
    ]


def _refusal(where: str, others: Sequence[str]) -> UsageError:
    instead = f"; it has {', '.join(others[:3])}" if others else ""
    return UsageError(
        f"{where} has no safetensors weights{instead}\n"
        "mtk reads nothing else; ask its authors, or convert it where you trust it"
    )
