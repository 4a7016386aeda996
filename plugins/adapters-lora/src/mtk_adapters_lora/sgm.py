"""The names that a diffusion UNet had when it was first released (``input_blocks``).

Kohya's trainer writes them for SDXL. A block of diffusers is a run of numbered entries
there, one for each residual layer (with its attention) and one for each downsampler;
an upsampler belongs to the last residual layer of its block. How long the runs are is
read off the names of the base, so every size of UNet is understood.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_BLOCK = re.compile(
    r"(?P<lead>(?:.*\.)?)(?P<side>down|up)_blocks\.(?P<block>\d+)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_MIDDLE = re.compile(
    r"(?P<lead>(?:.*\.)?)mid_block\.(?P<kind>resnets|attentions)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def sgm_names(stems: Collection[str]) -> dict[str, str]:
    """Module of a diffusers UNet -> its first name, for all modules that have one."""
    matches = {stem: match for stem in stems if (match := _BLOCK.fullmatch(stem))}
    if not matches:
        return {}
    starts, sizes, attending = _runs(matches)
    names = {stem: _OUTSIDE[stem] for stem in stems if stem in _OUTSIDE}
    for stem, match in matches.items():
        side, block = match["side"], int(match["block"])
        layer, rest, inner = int(match["layer"]), match["rest"], 0
        size = sizes[side, block]
        if match["kind"] == "resnets":
            rest = _renamed(rest)
        elif match["kind"] == "attentions":
            inner = 1
        elif side == "down":
            layer, rest = size, rest.replace("conv", "op", 1)
        else:
            layer, inner = size - 1, 1 + attending[side, block]
        where = f"{'input' if side == 'down' else 'output'}_blocks"
        names[stem] = (
            f"{match['lead']}{where}.{starts[side, block] + layer}.{inner}.{rest}"
        )
    for stem in stems:
        if found := _MIDDLE.fullmatch(stem):
            attention = found["kind"] == "attentions"
            rest = found["rest"] if attention else _renamed(found["rest"])
            place = 2 * int(found["layer"]) + attention
            names[stem] = f"{found['lead']}middle_block.{place}.{rest}"
    return names


def _runs(
    matches: Mapping[str, re.Match[str]],
) -> tuple[dict[tuple[str, int], int], dict[tuple[str, int], int], dict[tuple[str, int], bool]]:  # fmt: skip
    """Where each block's run starts, its residual layers, and whether it attends."""
    sizes: dict[tuple[str, int], int] = defaultdict(int)
    attending: dict[tuple[str, int], bool] = defaultdict(bool)
    sampled = set()
    for match in matches.values():
        key = match["side"], int(match["block"])
        if match["kind"] == "resnets":
            sizes[key] = max(sizes[key], int(match["layer"]) + 1)
        elif match["kind"] == "attentions":
            attending[key] = True
        else:
            sampled.add(key)
    starts, following = {}, {"down": 1, "up": 0}  # input_blocks.0 is conv_in
    for key in sorted({*sizes, *attending, *sampled}):
        side = key[0]
        starts[key] = following[side]
        following[side] += sizes[key] + (side == "down" and key in sampled)
    return starts, sizes, attending


def _renamed(rest: str) -> str:
    return _RESNET.get(rest, rest)
