"""The mathematics of the toy plugin."""

from __future__ import annotations

from mtk.results import PerTask
from mtk.testing._toy import ToyAdapter

ADAPTER = ToyAdapter()


def mean(*, experts, scale=1.0, rule="sum", **_):
    return scale * sum(experts) / len(experts)


def shared(*, experts):
    centre = sum(experts) / len(experts)
    return PerTask(centre, [{"delta": expert - centre} for expert in experts])


def decode(*, shared, code):
    return shared + code["delta"]


def fisher(*, experts, fisher):
    if None in [None if f is None else 0 for f in fisher]:
        return sum(experts) / len(experts)
    return sum(f * e for f, e in zip(fisher, experts, strict=True)) / sum(fisher)


def broken(*, experts):
    raise ValueError("one reason")
