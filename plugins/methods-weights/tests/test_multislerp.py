"""multislerp, against the five lines of its formula."""

from __future__ import annotations

import pytest
import torch

from mtk.errors import MethodError, UsageError
from mtk_methods_weights.multislerp import merge as multislerp


def run(experts, **changes):
    params = {"weights": None, "normalize": True, "origin": "zero", "eps": 1e-8}
    return multislerp(experts=experts, **(params | changes))


def reference(vectors, weights):
    """Vectors in float64, weights that are used as they are."""
    norms = [v.norm() for v in vectors]
    units = [v / (n + 1e-8) for v, n in zip(vectors, norms, strict=True)]
    m = sum(w * u for w, u in zip(weights, units, strict=True))
    m = m / m.norm()
    r = sum(w * (u - (u @ m) * m) for w, u in zip(weights, units, strict=True))
    length = r.norm() + 1e-8
    q = m * torch.cos(length) + r * torch.sin(length) / length
    return q * sum(w * n for w, n in zip(weights, norms, strict=True))


@pytest.mark.parametrize("normalize", [True, False])
def test_formula(draw, normalize):
    experts = [draw(4, 5) for _ in range(3)]
    got = run(experts, weights=[1.0, 2.0, 0.5], normalize=normalize)
    divisor = 3.5 if normalize else 1.0
    weights = [1.0 / divisor, 2.0 / divisor, 0.5 / divisor]
    want = reference([e.flatten().double() for e in experts], weights).view(4, 5)
    torch.testing.assert_close(got, want.float())


def test_origin_base(draw):
    base, experts = draw(8), [draw(8) for _ in range(3)]
    deltas = [(e - base).double() for e in experts]
    got = run(experts, origin="base", base=base)
    torch.testing.assert_close(got, (base + reference(deltas, [1 / 3] * 3)).float())
    with pytest.raises(UsageError, match="base"):
        run(experts, origin="base")


def test_order_does_not_matter(draw):
    a, b, c = draw(8), draw(8), draw(8)
    one = run([a, b, c], weights=[1.0, 2.0, 3.0])
    torch.testing.assert_close(one, run([c, a, b], weights=[3.0, 1.0, 2.0]))


def test_norm_of_equal_norms_is_kept(draw):
    experts = [x / x.norm() for x in (draw(9), draw(9), draw(9))]
    torch.testing.assert_close(run(experts).norm(), torch.tensor(1.0))


def test_directions_that_cancel(draw):
    a, b = draw(5), draw(5)
    torch.testing.assert_close(run([a, -3 * a]), -a)
    with pytest.raises(MethodError, match="cancel"):
        run([a, -a, b, -b])


def test_zeros_and_numbers_take_the_linear_mix():
    zero = torch.zeros(4)
    assert torch.equal(run([zero, zero, zero]), zero)
    numbers = [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(-6.0)]
    torch.testing.assert_close(run(numbers), torch.tensor(-1.0))
    assert run([torch.zeros(0, 3)] * 3).shape == (0, 3)


def test_experts_equal_to_the_base_are_left_out_of_the_direction(draw):
    base = draw(6)
    assert torch.equal(run([base, base.clone()], origin="base", base=base), base)
    mixed = run([base.clone(), base + 1, base + 1], origin="base", base=base)
    torch.testing.assert_close(mixed, base + 2 / 3)
