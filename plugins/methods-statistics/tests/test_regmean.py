"""regmean, against the closed form with an explicit inverse."""

from __future__ import annotations

import pytest
import torch

from mtk_methods_statistics.regmean import merge as regmean
from mtk_methods_statistics.regmean import solve


def reference(experts, grams, scale, weights):
    left = right = 0.0
    for weight, expert, gram in zip(weights, experts, grams, strict=True):
        g = gram.double()
        g = weight * (scale * g + (1 - scale) * torch.diag(g.diagonal()))
        left, right = left + g, right + g @ expert.double().T
    return (torch.linalg.inv(left) @ right).T.float()


@pytest.fixture
def case(draw):
    """Three experts (4 <- 6) with inputs of full rank."""
    experts = [draw(4, 6) for _ in range(3)]
    inputs = [draw(50, 6) * (i + 1) for i in range(3)]
    return experts, [x.T @ x / len(x) for x in inputs]


def run(experts, grams, scale=0.9, weights=None):
    return regmean(
        experts=experts, gram=grams, off_diagonal_scale=scale, weights=weights
    )


@pytest.mark.parametrize("scale", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.0]])
def test_closed_form(case, scale, weights):
    want = reference(*case, scale, weights or [1.0] * 3)
    torch.testing.assert_close(run(*case, scale, weights), want)


def test_normal_equations_hold(case):
    experts, grams = case
    merged = run(experts, grams, 1.0).double()
    rest = sum(
        g.double() @ (merged - w.double()).T
        for g, w in zip(grams, experts, strict=True)
    )
    assert float(rest.abs().max()) < 1e-5


def test_equal_grams_give_the_average(case):
    experts, grams = case
    torch.testing.assert_close(run(experts, [grams[0]] * 3), sum(experts) / 3)


def test_a_common_factor_changes_nothing(case):
    experts, grams = case
    moved = [1e-8 * gram for gram in grams]
    torch.testing.assert_close(run(experts, moved), run(experts, grams))


def test_a_dominant_gram_wins(case):
    experts, grams = case
    moved = [1e9 * grams[0], *grams[1:]]
    torch.testing.assert_close(run(experts, moved), experts[0], rtol=1e-4, atol=1e-5)


def test_inputs_that_never_occur_keep_the_mean(case):
    experts, grams = case
    grams = [gram.clone() for gram in grams]
    for gram in grams:
        gram[2], gram[:, 2] = 0.0, 0.0
    got = run(experts, grams)
    torch.testing.assert_close(got[:, 2], sum(w[:, 2] for w in experts) / 3)
    rest = [0, 1, 3, 4, 5]
    small = [gram[rest][:, rest] for gram in grams]
    want = reference([w[:, rest] for w in experts], small, 0.9, [1.0] * 3)
    torch.testing.assert_close(got[:, rest], want, rtol=1e-4, atol=1e-4)


def test_fewer_examples_than_inputs_stay_near_the_experts(draw):
    """Singular at scale 1: only what rounding leaks moves unseen directions."""
    experts, x = [draw(4, 6), draw(4, 6)], draw(3, 6)
    grams = [x.T @ x, torch.zeros(6, 6)]
    got = run(experts, grams, 1.0)
    torch.testing.assert_close(got @ x.T, experts[0] @ x.T, rtol=1e-3, atol=1e-3)
    unseen = torch.linalg.svd(x)[2][3:]
    mean = (experts[0] + experts[1]) / 2
    torch.testing.assert_close(got @ unseen.T, mean @ unseen.T, rtol=0, atol=0.1)


def test_no_inputs_at_all_give_the_weighted_mean(draw):
    experts = [draw(4, 6), draw(4, 6)]
    got = run(experts, [torch.zeros(6, 6)] * 2, weights=[1.0, 3.0])
    torch.testing.assert_close(got, (experts[0] + 3 * experts[1]) / 4)


def test_indefinite_matrices_still_give_an_answer():
    matrix = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    right = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    got = solve(matrix, right)
    torch.testing.assert_close(matrix @ got, right, rtol=1e-4, atol=1e-4)


def test_a_tensor_that_lacks_one_gram_is_averaged(case):
    experts, grams = case
    got = run(experts, [grams[0], None, grams[2]], weights=[1.0, 1.0, 2.0])
    want = (experts[0] + experts[1] + 2 * experts[2]) / 4
    torch.testing.assert_close(got, want)


def test_inputs_are_left_alone(case):
    experts, grams = case
    before = [tensor.clone() for tensor in (*experts, *grams)]
    run(experts, grams)
    assert all(map(torch.equal, before, (*experts, *grams)))
