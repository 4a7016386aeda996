"""Random recipes with everything that changes a parameter: levels, filters, gradients.

Every slice has the same sources in number, since mergekit 0.1.5 leaves some out of the
final norm where the last slice has more than the first. No filter has a layer's number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

FILTERS = ("self_attn", "mlp", "q_proj", "norm", "layers", "embed", "lm_head", "down_")
# Method -> parameters of models, with their range; of the merge; most experts; base.
METHODS: dict[str, tuple[dict, dict, int, str]] = {
    "linear": ({"weight": (0.1, 1)}, {"normalize": bool}, 3, "may"),
    "passthrough": ({"scale": (0.1, 1)}, {}, 1, "never"),
    "task_arithmetic": ({"weight": (0.1, 1)}, {"normalize": bool, "lambda": (0.2, 1)}, 3, "must"),
    "ties": (
        {"weight": (0.1, 1), "density": (0.1, 1)},
        {"normalize": bool, "lambda": (0.2, 1)},
        3,
        "must",
    ),
    "dare_linear": ({"weight": (0.1, 1)}, {"normalize": bool, "lambda": (0.2, 1)}, 3, "must"),
    "dare_ties": ({"weight": (0.1, 1)}, {"normalize": bool, "lambda": (0.2, 1)}, 3, "must"),
    "slerp": ({}, {"t": (0, 1)}, 1, "must"),
    "nuslerp": (
        {"weight": float},
        {"nuslerp_flatten": bool, "nuslerp_row_wise": bool},
        2,
        "may",
    ),
    "multislerp": ({"weight": (0.1, 1)}, {"normalize_weights": bool}, 3, "may"),
    "karcher": ({}, {}, 3, "may"),
}  # fmt: skip


def make(random: Random) -> dict[str, Any]:
    """One recipe for the models of ``make_reference``."""
    method = random.choice(list(METHODS))
    own, shared, most, need = METHODS[method]
    base = None
    if need == "must" or (need == "may" and random.random() < 0.4):
        base = random.choice(["base", "base", "c"])
    experts = random.sample([name for name in "abc" if name != base], 2)
    if most == 3 and base != "c" and random.random() < 0.5:
        experts = list("abc")
    experts = experts[: min(most, random.randint(1, 3) if most == 3 else most)]
    names = list(experts)
    if base:
        names.insert(random.randint(0, len(names)), base)
    config: dict[str, Any] = {"merge_method": method}
    if base:
        config["base_model"] = base
    config["parameters"] = {
        **{name: _setting(random, kind, whole=True) for name, kind in own.items()},
        **_some(random, shared, 0.5),
    }
    if "t" in shared:
        config["parameters"]["t"] = _setting(random, shared["t"], whole=True)
    if method == "passthrough" or random.random() < 0.45:
        config["slices"] = [
            _slice(random, names, own, shared) for _ in range(random.randint(1, 3))
        ]
    else:
        left = experts if base and random.random() < 0.5 else names
        config["models"] = [
            {"model": name, "parameters": _some(random, own, 0.7)} for name in left
        ]
    return _as_module(random, config) if random.random() < 0.15 else config


def _slice(random: Random, names: list[str], own: dict, shared: dict) -> dict[str, Any]:
    count = random.randint(1, 3)
    sources = []
    for name in names:
        start = random.randint(0, 4 - count)
        source = {"model": name, "layer_range": [start, start + count]}
        sources.append({**source, "parameters": _some(random, own, 0.5)})
    return {"sources": sources, "parameters": _some(random, own | shared, 0.3)}


def _as_module(random: Random, config: dict[str, Any]) -> dict[str, Any]:
    moved = {name for name in config["parameters"] if random.random() < 0.5}
    body: dict[str, Any] = {
        key: config.pop(key) for key in ("models", "slices") if key in config
    }
    body["parameters"] = {
        name: config["parameters"].pop(name) for name in sorted(moved)
    }
    return {**config, "modules": {"default": body}}


def _some(random: Random, kinds: dict, share: float) -> dict[str, Any]:
    return {
        name: _setting(random, kind)
        for name, kind in kinds.items()
        if random.random() < share
    }


def _setting(random: Random, kind: Any, *, whole: bool = False) -> Any:
    if kind is bool:
        return random.random() < 0.5
    if kind is float:  # one number: nuslerp's weights share a sum
        return round(random.uniform(0.1, 1), 3)
    if random.random() < 0.4:
        return _value(random, kind)
    cases: list[dict[str, Any]] = [
        {"filter": text, "value": _value(random, kind)}
        for text in random.sample(FILTERS, random.randint(1, 3))
    ]
    if whole or random.random() < 0.5:
        last = random.choice([{}, {"filter": "*"}])
        cases.append({**last, "value": _value(random, kind)})
    return cases


def _value(random: Random, kind: tuple[float, float]) -> Any:
    if random.random() < 0.5:
        return round(random.uniform(*kind), 3)
    return [round(random.uniform(*kind), 3) for _ in range(random.randint(1, 6))]
