"""Names of the tensors in an adapter's file: which module, which part of it."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from mtk.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

_PARTS = [
    (re.compile(pattern), part)
    for pattern, part in (
        (r"(.+)\.lora_A\.weight", "a"),
        (r"(.+)\.lora_B\.weight", "b"),
        (r"(.+)\.lora_B\.bias", "bias"),
        (r"(.+)\.lora_embedding_A", "embedding_a"),
        (r"(.+)\.lora_embedding_B", "embedding_b"),
        (r"(.+)\.lora_magnitude_vector(?:\.weight)?", "magnitude"),
        (r"(.+)\.lora_down\.weight", "a"),
        (r"(.+)\.lora_up\.weight", "b"),
        (r"(.+)\.lora\.down\.weight", "a"),
        (r"(.+)\.lora\.up\.weight", "b"),
        (r"(.+)_lora\.down\.weight", "a"),
        (r"(.+)_lora\.up\.weight", "b"),
        (r"(.+)\.alpha", "alpha"),
    )
]
_VARIANTS = {
    name: re.compile(pattern)
    for name, pattern in (
        ("LoHa", r"\.hada_"),
        ("LoKr", r"\.lokr_"),
        ("OFT", r"\.b?oft_|\.boft"),
        ("GLoRA", r"\.glora"),
        ("VeRA", r"\.vera_"),
        ("IA3", r"\.ia3|\.on_input"),
        ("AdaLoRA", r"\.lora_E"),
        ("DoRA as LyCORIS writes it", r"\.dora_scale"),
        ("a LoRA with a middle factor", r"\.lora_mid"),
        ("a full difference", r"\.(diff(_b)?$|w_norm|b_norm)"),
    )
}
MARKS = re.compile(
    r"\.lora_(A|B|down|up)\.weight$|\.lora_embedding_[AB]$|[._]lora\.(down|up)\.weight$|"
    r"\.(hada_w1_a|lokr_w[12](_a)?|oft_blocks|oft_diag|dora_scale)$"
)
_NAME = re.compile(r"[\w\-]+(\.[\w\-]+)*", re.ASCII)
KOHYA = re.compile(r"lora_[a-z0-9]+_")


def sort_keys(
    keys: Iterable[str], label: str
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module -> part -> key, and the keys that belong to no module."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    for key in keys:
        if not _NAME.fullmatch(key):
            raise CheckpointError(f"{label}: {key[:80]!r} is not a tensor name")
        variant = next((v for v, p in _VARIANTS.items() if p.search(key)), None)
        if variant:
            raise CheckpointError(
                f"{label}: {key!r} belongs to {variant}, a variant of LoRA that is not read\n"
                "Merge that adapter into its base with its own tool, and give the result"
            )
        for pattern, part in _PARTS:
            match = pattern.fullmatch(key)
            if match:
                module = _undecorated(match[1])
                if part in modules[module]:
                    raise CheckpointError(
                        f"{label}: {module!r} has two tensors for the same part: "
                        f"{modules[module][part]!r} and {key!r}"
                    )
                modules[module][part] = key
                break
        else:
            rest.append(key)
    return dict(modules), rest


def _undecorated(module: str) -> str:
    """Old diffusers files name attention processors instead of the layers they change."""
    head, dot, last = module.rpartition(".processor.")
    if not dot:
        return module
    return f"{head}.to_out.0" if last == "to_out" else f"{head}.{last}"
