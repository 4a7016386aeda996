"""Names of expert tensors: how files spell them, and the one spelling of the view.

In the view, expert E of a block has ``BLOCK.experts.E.{gate,up,down}_proj.weight`` and the
router is ``BLOCK.gate.weight``. ``block_sparse_moe`` at the end of a block is ``mlp``, as
in the models of transformers 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# How configurations call the number of experts of a layer, and of experts per token.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")

_SEPARATE = re.compile(
    r"(?P<block>.+)\.experts\.(?P<expert>\d{1,6})\.(?P<part>[a-z]\w*?)"
    r"(?P<bias>_bias|\.bias)?(?:\.weight)?"
)
_FUSED = re.compile(
    r"(?P<block>.+)\.experts\.(?P<part>[a-z]\w*?)(?P<bias>_bias)?(?:\.weight)?"
)
_GRANITE = re.compile(
    r"(?P<block>.+\.block_sparse_moe)\.(?P<part>input_linear|output_linear)\.weight"
)
_ROUTER = re.compile(r"(?:gate|router|router\.layer)\.(?P<tail>weight|bias)")
_SHARED_PART = re.compile(
    r"(?P<block>.+)\.(?P<shared>shared_experts?)\.(?P<part>\w+)\.weight"
)
_PARTS = {
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "input_linear": "gate_up_proj",
    "output_linear": "down_proj",
}
SEPARATE = frozenset({"gate_proj", "up_proj", "down_proj"})
FUSED = frozenset({"gate_up_proj", "down_proj"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stored tensor belongs: a part of one expert, or of all of a block."""

    block: str
    expert: int | None
    part: str
    bias: bool


def place(name: str) -> Place | None:
    """The place of an expert tensor; None for all others. Shared experts are others."""
    if found := _SEPARATE.fullmatch(name):
        part = _PARTS.get(found["part"], found["part"])
        return Place(found["block"], int(found["expert"]), part, bool(found["bias"]))
    if found := _FUSED.fullmatch(name):
        return Place(found["block"], None, found["part"], bool(found["bias"]))
    if found := _GRANITE.fullmatch(name):
        return Place(found["block"], None, _PARTS[found["part"]], bias=False)
    return None


def known(names: Iterable[str]) -> bool:
    """Whether the expert tensors, taken together, have a layout that is known here."""
    separate: set[str] = set()
    fused: set[str] = set()
    for name in names:
        found = place(name)
        if found is not None and not found.bias:
            (fused if found.expert is None else separate).add(found.part)
    return (separate == SEPARATE and not fused) or (fused == FUSED and not separate)


def canonical_block(block: str) -> str:
    """The block's name in the view."""
    head, dot, last = block.rpartition(".")
    return f"{head}{dot}mlp" if last == "block_sparse_moe" else block


def canonical_tail(tail: str) -> str:
    """The name, within a block, of a tensor that is no expert's."""
    found = _ROUTER.fullmatch(tail)
    return f"gate.{found['tail']}" if found else tail


def shared_part(name: str) -> tuple[str, str] | None:
    """(block, projection) of a shared expert's tensor."""
    found = _SHARED_PART.fullmatch(name)
    return (found["block"], found["part"]) if found else None


def layer_number(block: str) -> int:
    """The last number in a block's name; -1 where there is none."""
    numbers = [part for part in block.split(".") if part.isdigit()]
    return int(numbers[-1]) if numbers else -1


def expert_count(config: Mapping[str, Any]) -> int | None:
    """Experts per layer, as the configuration says."""
    return _number(config, _COUNTS)


def experts_per_token(config: Mapping[str, Any]) -> int | None:
    """Experts that are used per token, as the configuration says."""
    return _number(config, _PER_TOKEN)


def shared_count(config: Mapping[str, Any]) -> int | None:
    """Shared experts per layer, where the configuration counts them."""
    return _number(config, _SHARED)


def _number(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """Of the model itself, or of the language model inside it."""
    inner = [value for value in config.values() if isinstance(value, dict)]
    for table in (config, *inner):
        for key in keys:
            value = table.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
