"""How a mixture of experts is built: layers, experts, and the names of their tensors.

Methods that merge the experts *of one model* start from here: the names are those of the
view ``experts``, so what they read and what they write need no further translation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mtk.errors import CheckpointError
from mtk_adapters_moe import folder, names
from mtk_adapters_moe.view import ExpertView

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLayer:
    """One layer that has experts.

    Args:
        number: of the layer in the model.
        block: what the names of its tensors begin with.
        experts: how many are routed to.
        router: name of the router's weight (experts, width), where it is known.
        shared: projection -> name, of the shared expert, where there is one.
    """

    number: int
    block: str
    experts: int
    router: str | None
    shared: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A mixture of experts.

    Args:
        layers: those that have experts, in order; others are dense.
        experts_per_layer: how many are routed to, in each of these layers.
        experts_per_token: how many of them a token uses.
        shared_experts: how many every token uses besides. Several are stored as one.
        projections: parts of an expert: ``gate_proj``, ``up_proj``, ``down_proj``, or
            ``gate_up_proj``, ``down_proj`` where experts are stored transposed.
        names: (layer, expert, projection) -> name of the weight in the view ``experts``.
    """

    layers: tuple[MoeLayer, ...]
    experts_per_layer: int
    experts_per_token: int
    shared_experts: int
    projections: tuple[str, ...]
    names: Mapping[tuple[int, int, str], str]

    def of_layer(self, layer: int, projection: str) -> list[str]:
        """Names of one projection of all experts of a layer, in the experts' order."""
        return [
            self.names[layer, expert, projection]
            for expert in range(self.experts_per_layer)
        ]


def structure(path: Path | str) -> Structure:
    """The structure of the model in a folder, from its configuration and headers."""
    place = Path(path)
    config = folder.read_config(place)
    return of_view(open_view(place), config)


def open_view(path: Path) -> ExpertView:
    """The view of single experts of the model in a folder."""
    config = folder.read_config(path)
    count = names.expert_count(config)
    source = folder.open_weights(path)
    if count is None or not names.known(source.names()):
        raise CheckpointError(
            f"{path} is no mixture of experts of a known layout\n"
            "Known are experts of gate, up and down projections, separate or fused"
        )
    return ExpertView(source, count, folder.weight_files(path))


def of_view(view: ExpertView, config: Mapping[str, object]) -> Structure:
    """The structure of an opened model."""
    table: dict[tuple[int, int, str], str] = {}
    blocks: dict[str, int] = {}
    shared: dict[str, dict[str, str]] = {}
    for name in view.names():
        found = names.place(name)
        if found is not None and found.expert is not None and not found.bias:
            number = blocks.setdefault(found.block, names.layer_number(found.block))
            table[number, found.expert, found.part] = name
        elif found is None and (part := names.shared_part(name)):
            shared.setdefault(part[0], {})[part[1]] = name
    if len(set(blocks.values())) != len(blocks):
        raise CheckpointError(
            f"{view.label}: several blocks of experts have the same layer number"
        )
    count = 1 + max(expert for _, expert, _ in table)
    known = set(view.names())
    layers = tuple(
        MoeLayer(
            number=number,
            block=block,
            experts=count,
            router=f"{block}.gate.weight" if f"{block}.gate.weight" in known else None,
            shared=shared.get(block, {}),
        )
        for block, number in sorted(blocks.items(), key=lambda item: item[1])
    )
    per_token = names.experts_per_token(config)
    if per_token is None or per_token > count:
        raise CheckpointError(
            f"{view.label}: the configuration gives {per_token} experts per token, of "
            f"{count}"
        )
    return Structure(
        layers=layers,
        experts_per_layer=count,
        experts_per_token=per_token,
        shared_experts=names.shared_count(config) or int(any(x.shared for x in layers)),
        projections=tuple(sorted({part for _, _, part in table})),
        names=table,
    )
