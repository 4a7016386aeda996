"""slerp, against the formula on one vector after the other."""

from __future__ import annotations

import math

import pytest
import torch

from mtk.errors import UsageError
from mtk_methods_weights.slerp import merge as slerp


def run(a, b, **changes):
    params = {
        "t": 0.5,
        "origin": "zero",
        "scope": "tensor",
        "dot_threshold": 0.9995,
        "eps": 1e-8,
        "summary": {},
    }
    return slerp(experts=[a, b], **(params | changes))


def reference(a, b, t, threshold=0.9995):
    """Two vectors, in float64."""
    a, b = a.double(), b.double()
    cos = float(a @ b / (a.norm() * b.norm()))
    if abs(cos) > threshold:
        return (1 - t) * a + t * b
    omega = math.acos(cos)
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_whole_tensor(draw, t):
    a, b = draw(4, 3), draw(4, 3)
    want = reference(a.flatten(), b.flatten(), t).view(4, 3)
    torch.testing.assert_close(run(a, b, t=t), want.float())


@pytest.mark.parametrize(("scope", "axis"), [("row", -1), ("column", 0)])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5), (7,)])
def test_vectors_along_an_axis(draw, scope, axis, shape):
    a, b = draw(*shape), draw(*shape)
    got = run(a, b, t=0.3, scope=scope).movedim(axis, -1).reshape(-1, shape[axis])
    one, two = (x.movedim(axis, -1).reshape(-1, shape[axis]) for x in (a, b))
    pairs = zip(one, two, strict=True)
    want = torch.stack([reference(v, w, 0.3) for v, w in pairs])
    torch.testing.assert_close(got, want.float())


def test_origin_base(draw):
    base, a, b = draw(6), draw(6), draw(6)
    got = run(a, b, t=0.4, origin="base", base=base)
    want = base + reference(a - base, b - base, 0.4)
    torch.testing.assert_close(got, want.float())
    with pytest.raises(UsageError, match="base"):
        run(a, b, origin="base")


def test_ends_are_exact(draw):
    a, b = draw(5), draw(5)
    assert torch.equal(run(a, b, t=0.0), a)
    assert torch.equal(run(a, b, t=1.0), b)


def test_equal_norms_are_kept_and_orthogonal_halves_are_simple(draw):
    a = torch.tensor([3.0, 0.0, 0.0])
    b = torch.tensor([0.0, 3.0, 0.0])
    torch.testing.assert_close(run(a, b), (a + b) / math.sqrt(2))
    c = draw(3)
    c = 3 * c / c.norm()
    torch.testing.assert_close(run(a, c, t=0.3).norm(), torch.tensor(3.0))


@pytest.mark.parametrize("threshold", [0.9995, 1.0])
def test_no_arc_means_linear(draw, threshold):
    a = draw(4)
    rule = {"t": 0.25, "dot_threshold": threshold}
    torch.testing.assert_close(run(a, -a, **rule), 0.5 * a)
    torch.testing.assert_close(run(a, 2 * a, **rule), 1.25 * a)
    torch.testing.assert_close(run(a, torch.zeros(4), **rule), 0.75 * a)
    assert torch.equal(run(torch.zeros(4), torch.zeros(4), **rule), torch.zeros(4))
    one, three = torch.tensor(1.0), torch.tensor(-3.0)
    torch.testing.assert_close(run(one, three, **rule), torch.tensor(0.0))


def test_threshold_one_resolves_small_angles(draw):
    a = draw(50)
    b = a + 1e-3 * draw(50)
    got = run(a, b, t=0.3, dot_threshold=1.0)
    torch.testing.assert_close(got, reference(a, b, 0.3, threshold=2.0).float())


def test_zero_rows_stay_zero(draw):
    a, b = draw(3, 4), draw(3, 4)
    a[1] = b[1] = 0.0
    got = run(a, b, scope="row")
    assert torch.equal(got[1], torch.zeros(4))
    assert bool(torch.isfinite(got).all())


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0)])
def test_small_shapes(scope, shape):
    assert run(torch.ones(shape), torch.ones(shape), scope=scope).shape == shape
