"""karcher, against its fixed-point iteration and against what the mean must satisfy."""

from __future__ import annotations

import math

import pytest
import torch

from mtk.errors import MethodError
from mtk_methods_weights.karcher import merge as karcher


def run(experts, **changes):
    params = {"weights": None, "iterations": 10, "tolerance": 1e-5} | changes
    return karcher(experts=experts, **params)


def reference(vectors, weights, iterations):
    norms = [v.norm() for v in vectors]
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    u = sum(w * x for w, x in zip(weights, units, strict=True))
    u = u / u.norm()
    for _ in range(iterations):
        total = torch.zeros_like(u)
        for w, x in zip(weights, units, strict=True):
            angle = math.acos(min(1.0, max(-1.0, float(u @ x))))
            total += w * angle / math.sin(angle) * (x - math.cos(angle) * u)
        length = total.norm()
        u = math.cos(length) * u + math.sin(length) * total / length
        u = u / u.norm()
    return u * sum(w * n for w, n in zip(weights, norms, strict=True))


def test_iteration(draw):
    experts, weights = [draw(3, 4) for _ in range(3)], [0.5, 0.3, 0.2]
    want = reference([e.flatten().double() for e in experts], weights, 4).view(3, 4)
    got = run(experts, weights=[5.0, 3.0, 2.0], iterations=4, tolerance=1e-12)
    torch.testing.assert_close(got, want.float())


def test_the_tangents_at_the_mean_cancel(draw):
    experts = [draw(20) for _ in range(4)]
    u = run(experts, iterations=100, tolerance=1e-9).double()
    u = u / u.norm()
    total = torch.zeros(20, dtype=torch.float64)
    for expert in experts:
        x = expert.double() / expert.double().norm()
        angle = torch.arccos(u @ x)
        total += angle / torch.sin(angle) * (x - (u @ x) * u)
    assert float(total.norm()) < 1e-6


def test_two_of_equal_norm_equal_slerp(merge, draw):
    a, b = draw(6), draw(6)
    states = [{"w": a / a.norm()}, {"w": b / b.norm()}]
    one = merge("karcher", states).tensors["w"]
    two = merge("slerp", states, states[0], dot_threshold=1.0).tensors["w"]
    torch.testing.assert_close(one, two)


def test_zero_vectors_count_in_the_norm_only(draw):
    a = draw(6)
    torch.testing.assert_close(run([a, torch.zeros(6)]), a / 2)
    assert torch.equal(run([torch.zeros(6)] * 3), torch.zeros(6))


def test_directions_that_cancel(draw):
    a, b = draw(5), draw(5)
    torch.testing.assert_close(run([a, -3 * a]), -a)
    with pytest.raises(MethodError, match="cancel"):
        run([a, -a, b, -b])


def test_opposite_of_the_start_does_no_harm():
    a = torch.tensor([1.0, 0.0])
    got = run([a, a, a, -a])
    torch.testing.assert_close(got, a)


def test_numbers_and_empty_tensors():
    numbers = [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(-6.0)]
    torch.testing.assert_close(run(numbers), torch.tensor(-1.0))
    assert run([torch.zeros(0)] * 2).shape == (0,)
