"""smile, against a dense layer that is told which experts to use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtk.live import routed
from mtk_methods_weights.smile import route


@pytest.fixture
def layers(draw):
    """A base and experts of one linear layer (6 <- 5) and a norm."""

    def make(count=3, rank=None):
        base = {"fc.weight": draw(6, 5), "fc.bias": draw(6), "norm.weight": draw(5)}
        experts = []
        for _ in range(count):
            low = draw(6, 5) if rank is None else draw(6, rank) @ draw(rank, 5)
            expert = {n: t + draw(*t.shape, scale=0.1) for n, t in base.items()}
            experts.append(expert | {"fc.weight": base["fc.weight"] + 0.1 * low})
        return base, experts

    return make


def reference(x, base, experts, *, gate_rank, rank, top_k, source="difference"):
    """One token (n,) in float64."""
    x, w0 = x.double(), base["fc.weight"].double()
    logits, outputs = [], []
    for expert in experts:
        w, b = expert["fc.weight"].double(), expert["fc.bias"].double()
        u, s, vh = torch.linalg.svd(w - w0, full_matrices=False)
        gate = vh if source == "difference" else torch.linalg.svd(w)[2]
        logits.append((gate[:gate_rank] @ x).norm())
        outputs.append(u[:, :rank] @ (s[:rank] * (vh[:rank] @ x)) + b - base["fc.bias"])
    p = torch.stack(logits).softmax(0)
    chosen = p.topk(top_k).indices
    return sum(p[i] / p[chosen].sum() * outputs[i] for i in chosen)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("source", ["difference", "weight"])
@pytest.mark.parametrize("rank", [2, 5, -1])
def test_route(merge, layers, draw, top_k, source, rank):
    base, experts = layers()
    params = {"gate_rank": 2, "rank": rank, "top_k": top_k, "router_source": source}
    merged = merge("smile", experts, base, **params)
    assert torch.equal(merged.tensors["fc.weight"], base["fc.weight"])
    x = draw(2, 4, 5)
    got = route(x=x, parts=merged.routing["fc.weight"], **merged.params)
    kept = 5 if rank < 0 else rank
    rule = {"gate_rank": 2, "rank": kept, "top_k": top_k, "source": source}
    rows = [reference(token, base, experts, **rule) for token in x.view(-1, 5)]
    torch.testing.assert_close(got, torch.stack(rows).float().view(2, 4, 6))


@pytest.mark.parametrize("rank", [1, 2, 5, -1])
def test_enough_rank_gives_the_chosen_expert(merge, layers, draw, rank):
    base, (expert, *_) = layers(1, rank=None if rank in (5, -1) else rank)
    merged = merge("smile", [expert], base, rank=rank)
    layer = nn.Module()
    layer.fc = nn.Linear(5, 6)
    layer.fc.load_state_dict({"weight": base["fc.weight"], "bias": base["fc.bias"]})
    x = draw(7, 5)
    with torch.no_grad(), routed(layer, merged.routing, route, merged.params):
        got = layer.fc(x)
    want = nn.functional.linear(x, expert["fc.weight"], expert["fc.bias"])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_identical_experts_give_that_expert(merge, layers, draw, top_k):
    base, (expert, *_) = layers(1)
    merged = merge("smile", [dict(expert) for _ in range(3)], base, top_k=top_k)
    x = draw(7, 5)
    got = route(x=x, parts=merged.routing["fc.weight"], **merged.params)
    want = x @ (expert["fc.weight"] - base["fc.weight"]).T
    want = want + expert["fc.bias"] - base["fc.bias"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_equal_logits_go_to_the_first_expert(merge, layers, draw):
    base, (expert, *_) = layers(1)
    twin = expert | {"fc.bias": expert["fc.bias"] + 1}
    merged = merge("smile", [expert, twin], base)
    x = draw(3, 5)
    got = route(x=x, parts=merged.routing["fc.weight"], **merged.params)
    alone = merge("smile", [expert], base)
    want = route(x=x, parts=alone.routing["fc.weight"], **alone.params)
    torch.testing.assert_close(got, want)


def test_no_differences_add_nothing(merge, layers):
    base, _ = layers()
    merged = merge("smile", [dict(base), dict(base)], base)
    assert merged.routing == {}
    assert merged.added_bytes() == 0
    assert all(torch.equal(merged.tensors[name], base[name]) for name in base)


def test_a_layer_whose_bias_alone_differs_stays_at_the_base(merge, layers, draw):
    base, _ = layers()
    expert = base | {"fc.bias": base["fc.bias"] + 1}
    merged = merge("smile", [expert], base)
    parts = merged.routing["fc.weight"]
    assert torch.equal(
        route(x=draw(2, 3, 5), parts=parts, **merged.params), torch.zeros(2, 3, 6)
    )


def test_one_expert_equal_to_the_base(merge, layers, draw):
    base, (expert, *_) = layers(1)
    merged = merge("smile", [dict(base), expert], base)
    x = draw(4, 5)
    got = route(x=x, parts=merged.routing["fc.weight"], **merged.params)
    alone = merge("smile", [expert], base)
    want = route(x=x, parts=alone.routing["fc.weight"], **alone.params)
    torch.testing.assert_close(got, want)


def test_null_directions_never_route(merge, layers):
    base, experts = layers(2, rank=1)
    merged = merge("smile", experts, base, gate_rank=4)
    norms = merged.routing["fc.weight"]["gate"].norm(dim=2)  # (k, g)
    torch.testing.assert_close(norms, torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2))


def test_rest(merge, layers):
    base, experts = layers()
    kept = merge("smile", experts, base).tensors["norm.weight"]
    assert torch.equal(kept, base["norm.weight"])
    mean = merge("smile", experts, base, rest="average").tensors["norm.weight"]
    torch.testing.assert_close(mean, sum(e["norm.weight"] for e in experts) / 3)


def test_factors_take_the_declared_rank(merge, layers):
    base, experts = layers()
    parts = merge("smile", experts, base, rank=2, gate_rank=3).routing["fc.weight"]
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    assert shapes == {
        "gate": (3, 3, 5),
        "left": (3, 6, 2),
        "right": (3, 2, 5),
        "bias": (3, 6),
    }


def test_inputs_of_another_dtype(merge, layers, draw):
    base, experts = layers()
    parts = merge("smile", experts, base).routing["fc.weight"]
    got = route(x=draw(3, 5).bfloat16(), parts=parts, top_k=1)
    assert got.dtype == torch.bfloat16
