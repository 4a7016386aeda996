"""The parameters of upcycling, declared as those of a method are."""

from __future__ import annotations

from mtk import Param

GATES = (
    "hidden_gate",
    "hidden",
    "hidden_avg",
    "cheap_embed",
    "random",
    "uniform_random",
)
PROMPTED = GATES[:4]
PARAMS = (
    Param(
        "gate",
        "hidden_gate",
        "how routers are made: from prompts (the first four) or at random",
        choices=GATES,
    ),
    Param("top_k", 2, "experts per token", low=1),
    Param("noise_scale", 0.0, "noise on MLP weights", low=0.0, type="float_or_floats"),
    Param(
        "residual_scale",
        1.0,
        "factor on the down projection",
        low=0.0,
        open_low=True,
        type="float_or_floats",
    ),
    Param("seed", 0, "of noise and of random routers", low=0),
)
