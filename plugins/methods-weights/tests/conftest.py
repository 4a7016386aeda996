"""The declarations under test, and merges of state dicts with them."""

from __future__ import annotations

import pytest
import torch

import mtk
from mtk.loading import Registry
from mtk_methods_weights import plugin


@pytest.fixture(scope="session")
def methods():
    return {method.name: method for method in plugin.mtk_methods()}


@pytest.fixture
def merge(methods):
    """``merge(name, experts, base=None, more={}, **params)``; gives the Merged."""

    def run(name, experts, base=None, more=None, **params):
        return mtk.merge(
            methods[name],
            experts=experts,
            base=base,
            params=params,
            registry=Registry(),
            **(more or {}),
        )

    return run


@pytest.fixture
def draw():
    """``draw(*shape)``: numbers from one seeded stream per test."""
    generator = torch.Generator().manual_seed(20240607)

    def normal(*shape, scale=1.0, dtype=torch.float32):
        return scale * torch.randn(shape, generator=generator, dtype=dtype)

    return normal


@pytest.fixture
def models(draw):
    """A base and ``count`` experts near it, with tensors of every kind of shape."""

    def make(count=3, dtype=torch.float32):
        shapes = {
            "conv.weight": (4, 3, 2, 2),
            "empty.weight": (0, 5),
            "fc.bias": (6,),
            "fc.weight": (6, 5),
            "head.weight": (5, 9),
            "scale": (),
        }
        base = {name: draw(*shape).to(dtype) for name, shape in shapes.items()}
        experts = [
            {
                n: (t.float() + draw(*t.shape, scale=0.1)).to(dtype)
                for n, t in base.items()
            }
            for _ in range(count)
        ]
        return base, experts

    return make
