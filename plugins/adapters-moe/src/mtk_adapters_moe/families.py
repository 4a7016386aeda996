"""Into which mixture-of-experts classes dense models can be upcycled, and how.

A family fits a dense model if its attention, norms and activation compute the same. That
is a fact about code, not about names and shapes, so donors are listed by ``model_type``.
Configurations are taken apart by transformers and copied field by field, because defaults
differ between classes: an absent RoPE base means 1e4 for Mistral and 1e6 for Mixtral.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, ParameterError, UsageError, first_line
from mtk.model_folders.cleaning import clean
from mtk.model_folders.reading import CONFIG
from mtk.parameters import suggestion
from mtk_adapters_moe import folder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
# Names that mean something else in the configuration of the result, or nothing at all.
_OWN_FIELDS = {
    "architectures", "auto_map", "model_type", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "transformers_version",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A class of mixtures of experts, and the dense models that become one.

    Args:
        donors: the ``model_type`` of the dense models.
        block: name of a layer's part that holds the experts.
        parts: what files call gate, up and down projection.
        count: what the configuration calls the number of experts.
        width: what it calls the inner width of an expert.
        shared: whether the class has a shared expert, with a gate of its own.
    """

    name: str
    donors: tuple[str, ...]
    model_class: str
    config_class: str
    block: str
    parts: Mapping[str, str]
    count: str
    width: str
    shared: bool = False

    def expert(self, layer: str, expert: int, projection: str) -> str:
        """The stored name of an expert's weight; ``layer`` is ``model.layers.3``."""
        return f"{layer}.{self.block}.experts.{expert}.{self.parts[projection]}.weight"

    def router(self, layer: str) -> str:
        """The stored name of a router's weight."""
        return f"{layer}.{self.block}.gate.weight"

    def shared_expert(self, layer: str, projection: str) -> str:
        """The stored name of the shared expert's weight."""
        return f"{layer}.{self.block}.shared_expert.{projection}.weight"

    def shared_gate(self, layer: str) -> str:
        """The stored name of the shared expert's gate."""
        return f"{layer}.{self.block}.shared_expert_gate.weight"


_SAME = {name: name for name in PROJECTIONS}
FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="mixtral",
            donors=("llama", "mistral"),
            model_class="MixtralForCausalLM",
            config_class="MixtralConfig",
            block="block_sparse_moe",
            parts={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
            count="num_local_experts",
            width="intermediate_size",
        ),
        Family(
            name="qwen2_moe",
            donors=("qwen2", "llama", "mistral"),
            model_class="Qwen2MoeForCausalLM",
            config_class="Qwen2MoeConfig",
            block="mlp",
            parts=_SAME,
            count="num_experts",
            width="moe_intermediate_size",
            shared=True,
        ),
        Family(
            name="qwen3_moe",
            donors=("qwen3",),
            model_class="Qwen3MoeForCausalLM",
            config_class="Qwen3MoeConfig",
            block="mlp",
            parts=_SAME,
            count="num_experts",
            width="moe_intermediate_size",
        ),
    )
}


def choose(name: str | None, model_type: str, *, shared: bool) -> Family:
    """The family that was named, or else the first that fits the donor."""
    if name is not None and name not in FAMILIES:
        raise ParameterError(
            f"upcycle: no family {name!r}{suggestion(name, FAMILIES)}\n"
            f"Families: {', '.join(FAMILIES)}"
        )
    fitting = [f for f in FAMILIES.values() if model_type in f.donors]
    if name is None:
        chosen = [f for f in fitting if f.shared or not shared][:1]
    else:
        chosen = [f for f in fitting if f.name == name]
    if not chosen:
        known = ", ".join(sorted({t for f in FAMILIES.values() for t in f.donors}))
        kind = (
            f"{name or 'mixture of experts'}{' with a shared expert' if shared else ''}"
        )
        raise UsageError(
            f"upcycle: a model of type {model_type!r} cannot become a {kind}\n"
            f"Dense models that can become one: {known}"
        )
    if shared and not chosen[0].shared:
        raise UsageError(
            f"upcycle: {chosen[0].name} has no shared expert; choose family qwen2_moe"
        )
    return chosen[0]


def donor_config(path: Path) -> dict[str, Any]:
    """Every field of a dense model's configuration, defaults of its class included."""
    from transformers import AutoConfig

    written = clean(folder.read_config(path))
    kind = written.pop("model_type", None)
    if not isinstance(kind, str):
        raise CheckpointError(f"{path / CONFIG} names no model_type")
    try:
        complete: dict[str, Any] = AutoConfig.for_model(kind, **written).to_dict()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path / CONFIG}: transformers does not accept it: {first_line(error)}"
        ) from error
    return complete


def moe_config(
    family: Family,
    donor: Mapping[str, Any],
    tensors: Collection[str],
    *,
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """The configuration of the result.

    Args:
        family: of the result.
        donor: all fields of the donor's configuration.
        tensors: the donor's tensor names.
        own: number and width of the experts, experts per token, dtype, rows.
    """
    import transformers

    made = getattr(transformers, family.config_class)
    ours = made().to_dict()
    fields = {
        key: value
        for key, value in donor.items()
        if key in ours and key not in _OWN_FIELDS
    }
    if donor.get("head_dim") is not None:
        fields["head_dim"] = donor["head_dim"]
    bias = any(name.endswith("q_proj.bias") for name in tensors)
    for key in ("qkv_bias", "attention_bias"):
        if key in ours:
            fields[key] = bias
    if "norm_topk_prob" in ours:
        fields["norm_topk_prob"] = True
    try:
        config: dict[str, Any] = made(**{**fields, **own}).to_diff_dict()
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"upcycle: transformers does not accept the configuration of the result: "
            f"{first_line(error)}"
        ) from error
    config = {**fields, **config, family.count: own[family.count]}
    config["architectures"] = [family.model_class]
    return _finished(config)


def _finished(config: dict[str, Any]) -> dict[str, Any]:
    """Without what means nothing here, and with RoPE where old versions look for it."""
    for key in ("_name_or_path", "id2label", "label2id"):
        config.pop(key, None)
    if config.get("head_dim", 0) is None:
        del config["head_dim"]
    if "sliding_window" in config:
        config["sliding_window"] = None
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {
                key: value for key, value in rope.items() if key != "rope_theta"
            }
    return config


def slides(donor: Mapping[str, Any]) -> bool:
    """Whether the donor's attention looks back over a window only."""
    window, longest = donor.get("sliding_window"), donor.get("max_position_embeddings")
    used = bool(window) and donor.get("use_sliding_window", True) is not False
    return used and (longest is None or window < longest)
