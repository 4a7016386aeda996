"""Dense models on their way into a mixture: what they hold, and whether they fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError
from mtk.model_folders.tokens import tokens_of
from mtk_adapters_moe import folder
from mtk_adapters_moe.families import PROJECTIONS

if TYPE_CHECKING:
    from mtk.adapters import Checkpoint
    from mtk_adapters_moe.families import Family

    Model = Path | str | Checkpoint

EMBEDDINGS = "model.embed_tokens.weight"
_MLP = re.compile(
    r"(?P<layer>model\.layers\.\d+)\.mlp\.(?P<part>(?:gate|up|down)_proj)\.weight"
)
_LAYER = re.compile(r"model\.layers\.\d+\.(?P<tail>.+)")
_OUTER = {EMBEDDINGS, "model.norm.weight", "lm_head.weight"}
_ATTENTION = {
    *(f"self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
}
_QKV_BIAS = {f"self_attn.{part}.bias" for part in ("q_proj", "k_proj", "v_proj")}
# What a layer may hold besides, and what it must hold, by family.
_MAY = {
    "mixtral": set[str](),
    "qwen2_moe": _QKV_BIAS,
    "qwen3_moe": {*_QKV_BIAS, "self_attn.o_proj.bias"},
}
_MUST = {"qwen3_moe": {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A dense model.

    Args:
        source: its tensors.
        mlp: (layer, projection) -> name, ``("model.layers.3", "up_proj")``.
        inner: width inside its MLPs, and ``width`` outside.
        folder: where it lies, if it is a folder.
    """

    source: Checkpoint
    mlp: dict[tuple[str, str], str]
    width: int
    inner: int
    folder: Path | None

    @property
    def layers(self) -> list[str]:
        """``model.layers.0`` and so on, in order."""
        names = {layer for layer, _ in self.mlp}
        return sorted(names, key=lambda name: int(name.rpartition(".")[2]))


def open_dense(model: Model, label: str) -> Dense:
    """A folder of a dense model, or an open checkpoint of one."""
    place = Path(model) if isinstance(model, str | Path) else None
    if place is not None and not place.is_dir():
        raise CheckpointError(f"{label}: no such folder: {place}")
    source: Any = model if place is None else folder.open_weights(place, str(place))
    mlp = {}
    for name in source.names():
        if found := _MLP.fullmatch(name):
            mlp[found["layer"], found["part"]] = name
    shapes = {part: set[tuple[int, ...]]() for part in PROJECTIONS}
    for (_, part), name in mlp.items():
        shapes[part].add(source.info(name).shape)
    gate, up, down = (shapes[part] for part in PROJECTIONS)
    layers = {layer for layer, _ in mlp}
    if len(mlp) != 3 * len(layers) or not mlp or len(gate | up) != 1 or len(down) != 1:
        raise CheckpointError(
            f"{label} ({source.label}) is no dense model with a gate, up and down "
            "projection of one size in every layer"
        )
    (inner, width), other = gate.pop(), down.pop()
    if other != (width, inner):
        raise CheckpointError(
            f"{label} ({source.label}): the down projections are {other}, not "
            f"{(width, inner)}"
        )
    return Dense(source=source, mlp=mlp, width=width, inner=inner, folder=place)


def check_donor(donor: Dense, family: Family) -> None:
    """Refuse tensors that the family's class has no place for, or lacks."""
    label, mlp = donor.source.label, set(donor.mlp.values())
    known = _ATTENTION | _MUST.get(family.name, set())
    found: dict[str, set[str]] = {layer: set() for layer in donor.layers}
    for name in donor.source.names():
        inside = _LAYER.fullmatch(name)
        if name in mlp or name in _OUTER:
            continue
        tail = inside["tail"] if inside else ""
        if tail not in known | _MAY[family.name]:
            raise CheckpointError(
                f"{label}: {name!r} has no place in a {family.name} model"
            )
        found.setdefault(name.removesuffix(f".{tail}"), set()).add(tail)
    for layer, tails in found.items():
        if not known <= tails:
            raise CheckpointError(
                f"{label}: {layer} lacks {min(known - tails)!r}, which a {family.name} "
                "model needs"
            )
    extra = {frozenset(tails - known) for tails in found.values()}
    if len(extra) > 1 or not extra <= {frozenset(), frozenset(_MAY[family.name])}:
        raise CheckpointError(f"{label}: some projections have a bias, some have none")
    if EMBEDDINGS not in donor.source.names():
        raise CheckpointError(f"{label} has no {EMBEDDINGS!r}")


def check_expert(expert: Dense, donor: Dense, label: str, *, shared: bool) -> None:
    """Refuse an expert whose MLPs do not fit into the donor's layers."""
    same = expert.layers == donor.layers and expert.width == donor.width
    if not same or not (shared or expert.inner == donor.inner):
        raise CheckpointError(
            f"{label} ({expert.source.label}) has {len(expert.layers)} layers of MLPs "
            f"({expert.width}, {expert.inner}); the donor has {len(donor.layers)} of "
            f"({donor.width}, {donor.inner})"
        )


def same_vocabulary(one: Dense, two: Dense) -> bool:
    """Whether two models mean the same words, as far as their files tell."""
    rows = []
    for dense in (one, two):
        known = EMBEDDINGS in dense.source.names()
        rows.append(dense.source.info(EMBEDDINGS).shape[0] if known else None)
    if None not in rows and rows[0] != rows[1]:
        return False
    first, second = (tokens_of(d.folder) if d.folder else {} for d in (one, two))
    return not first or not second or first == second
