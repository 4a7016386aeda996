"""iso_c, against the SVD written out, and its invariants."""

from __future__ import annotations

import pytest
import torch

from mtk_methods_weights.iso_c import isotropic


def test_matrices_and_the_rest(merge, models):
    base, experts = models()
    got = merge("iso_c", experts, base, scale=0.7).tensors
    for name, tensor in base.items():
        total = sum(expert[name].double() - tensor.double() for expert in experts)
        if tensor.ndim == 2 and tensor.numel():
            u, s, vh = torch.linalg.svd(total, full_matrices=False)
            change = s.mean() * u @ vh
        else:
            change = total / 3
        torch.testing.assert_close(got[name], (tensor + 0.7 * change).float())


def test_include_exclude_and_rest(merge, models):
    base, experts = models()
    options = {"include": ["fc*", "head*"], "exclude": ["head*"], "rest": "base"}
    got = merge("iso_c", experts, base, **options).tensors
    assert {n for n in base if not torch.equal(got[n], base[n])} == {"fc.weight"}


def test_spectrum_is_flat_and_nuclear_norm_kept(draw):
    delta = draw(8, 5)
    flat, before = torch.linalg.svdvals(isotropic(delta)), torch.linalg.svdvals(delta)
    torch.testing.assert_close(flat, before.mean().expand(5))
    torch.testing.assert_close(isotropic(delta.T), isotropic(delta).T)
    torch.testing.assert_close(isotropic(3 * delta), 3 * isotropic(delta))


def test_isotropic_matrices_do_not_change(draw):
    q = torch.linalg.qr(draw(5, 5)).Q
    torch.testing.assert_close(isotropic(2 * q), 2 * q)


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_deficient_sums_use_only_real_directions(draw, rank):
    u, s, vh = torch.linalg.svd(draw(8, rank) @ draw(rank, 6), full_matrices=False)
    got = isotropic((u * s) @ vh)
    want = s[:rank].sum() / 6 * u[:, :rank] @ vh[:rank]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_zero_sum_stays_zero():
    assert torch.equal(isotropic(torch.zeros(4, 3)), torch.zeros(4, 3))


def test_zero_scale_is_the_base(merge, models):
    base, experts = models()
    got = merge("iso_c", experts, base, scale=0.0).tensors
    assert all(torch.equal(got[name], base[name]) for name in base)
