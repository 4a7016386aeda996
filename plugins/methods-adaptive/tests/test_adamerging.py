"""adamerging, against plain autograd through the merge."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtk import LiveTask
from mtk.errors import ParameterError
from mtk_methods_adaptive._learning import entropy
from mtk_methods_adaptive.adamerging import start, task_vectors


@pytest.fixture
def case(draw):
    """A base, three experts and their tasks, for a network with an unused tensor."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5, bias=False))
    module.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    module.register_parameter("empty", nn.Parameter(torch.zeros(0, 2)))
    base = {
        name: tensor.detach().clone() for name, tensor in module.state_dict().items()
    }
    experts = [
        {name: tensor + draw(*tensor.shape, scale=0.5) for name, tensor in base.items()}
        for _ in range(3)
    ]
    tasks = [
        LiveTask(
            name=str(i), module=module, forward=lambda m, x: m(x), inputs=draw(12, 6)
        )
        for i in range(3)
    ]
    return base, experts, tasks


def run(merge, case, **params):
    base, experts, tasks = case
    params = {"steps": 5, "batch_size": 12, "learning_rate": 0.01} | params
    return merge("adamerging", experts, base, {"tasks": tasks}, **params).tensors


def reference(case, *, granularity, steps, clamp, initial, rate):
    """Autograd through base + sum of clamped coefficients times task vectors."""
    base, experts, tasks = case
    rows = 1 if granularity == "task" else len(base)
    start_at = torch.tensor(initial, dtype=torch.float32).expand(rows, 3).clone()
    coefficients = start_at.requires_grad_()
    optimizer = torch.optim.Adam([coefficients], lr=rate)

    def merged():
        used = coefficients.clamp(0, 1) if clamp else coefficients
        return {
            name: base[name]
            + sum(
                used[row % rows, i] * (expert[name] - base[name])
                for i, expert in enumerate(experts)
            )
            for row, name in enumerate(base)
        }

    for _ in range(steps):
        loss = 0.0
        for task in tasks:
            logits = task.logits(merged(), task.inputs)
            p = logits.softmax(-1)
            loss = loss - (p * p.log()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in merged().items()}


@pytest.mark.parametrize("granularity", ["tensor", "task"])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("initial", [0.3, [0.0, 1.0, 0.5], [-0.2, 1.3, 0.4]])
def test_contraction_equals_autograd(merge, case, granularity, clamp, initial):
    rule = {"granularity": granularity, "clamp": clamp, "initial": initial}
    got = run(merge, case, steps=15, **rule)
    want = reference(case, steps=15, rate=0.01, **rule)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_no_steps_are_task_arithmetic(merge, case):
    base, experts, _ = case
    got = run(merge, case, steps=0, initial=[0.3, 0.2, 0.1])
    for name, tensor in base.items():
        deltas = [expert[name] - tensor for expert in experts]
        want = tensor + 0.3 * deltas[0] + 0.2 * deltas[1] + 0.1 * deltas[2]
        torch.testing.assert_close(got[name], want)


def test_entropy_falls(merge, case):
    _, _, tasks = case

    def loss(tensors):
        return sum(float(entropy(task.logits(tensors, task.inputs))) for task in tasks)

    assert loss(run(merge, case, steps=30)) < loss(run(merge, case, steps=0))


def test_tensors_without_influence_keep_the_start(merge, case):
    base, experts, _ = case
    got = run(merge, case, steps=10)["unused"]
    want = base["unused"] + 0.3 * sum(e["unused"] - base["unused"] for e in experts)
    torch.testing.assert_close(got, want)


def test_first_step_has_the_length_of_the_learning_rate(merge, case):
    base, experts, tasks = case
    one = [experts[0]]
    tensors = merge(
        "adamerging",
        one,
        base,
        {"tasks": tasks[:1]},
        steps=1,
        learning_rate=0.01,
        batch_size=12,
    ).tensors
    for name in ("0.weight", "0.bias", "2.weight"):
        delta = one[0][name] - base[name]
        moved = (tensors[name] - base[name] - 0.3 * delta) / delta
        length = moved.abs().median()
        torch.testing.assert_close(length, torch.tensor(0.01), rtol=1e-2, atol=1e-4)


def test_experts_equal_to_the_base_give_the_base(merge, case):
    base, _, tasks = case
    got = run(merge, (base, [dict(base) for _ in tasks], tasks))
    assert all(torch.equal(got[name], base[name]) for name in base)
    got = run(merge, (base, [dict(base) for _ in tasks], tasks), plus_plus=True)
    assert all(torch.equal(got[name], base[name]) for name in base)


def test_one_expert_at_one(merge, case):
    base, experts, tasks = case
    got = run(merge, (base, experts[:1], tasks[:1]), steps=0, initial=1.0)
    torch.testing.assert_close(got, experts[0])


def test_seeds_order_the_data(merge, case):
    params = {"batch_size": 4, "steps": 3}
    one, two = (run(merge, case, seed=1, **params) for _ in range(2))
    other = run(merge, case, seed=2, **params)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_modules_and_inputs_are_left_alone(merge, case):
    base, experts, tasks = case
    states = [base, *experts, tasks[0].module.state_dict()]
    before = [{n: t.clone() for n, t in state.items()} for state in states]
    run(merge, case, plus_plus=True)
    for one, two in zip(before, states, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(p.grad is None for p in tasks[0].module.parameters())


@pytest.mark.parametrize("density", [0.05, 0.2, 0.8])
def test_plus_plus_vectors(case, density):
    base, experts, _ = case
    got = task_vectors(experts, base, plus_plus=True, density=density)
    names = sorted(base)
    flat = torch.stack(
        [torch.cat([(e[n] - base[n]).flatten() for n in names]) for e in experts]
    )
    k = flat.shape[1] - int(flat.shape[1] * density)
    flat = flat * (flat.abs() >= flat.abs().kthvalue(k, dim=1, keepdim=True).values)
    signs = flat.sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    want = torch.where(signs > 0, flat * (flat > 0), flat * (flat < 0))
    assert torch.equal(torch.cat([got[n] for n in names], dim=1), want)


def test_plus_plus_ends(case):
    base, experts, _ = case
    nothing = task_vectors(experts, base, plus_plus=True, density=0.0)
    assert not any(bool(rows.any()) for rows in nothing.values())
    one = task_vectors(experts[:1], base, plus_plus=True, density=1.0)
    plain = task_vectors(experts[:1], base, plus_plus=False, density=1.0)
    assert all(torch.equal(one[name], plain[name]) for name in base)


def test_start():
    rows = start([0.1, 0.2], ["a", "b"], 2, "tensor")
    assert {name: row.tolist() for name, row in rows.items()}.keys() == {"a", "b"}
    assert list(start(0.3, ["a", "b"], 2, "task")) == ["all"]
    with pytest.raises(ParameterError, match="initial"):
        start([0.1], ["a"], 2, "tensor")


def test_entropy_is_highest_for_equal_logits():
    torch.testing.assert_close(entropy(torch.zeros(4, 8)), torch.tensor(8.0).log())
    mask = torch.tensor([[True, False]])
    logits = torch.tensor([[[0.0, 0.0], [9.0, 0.0]]])
    torch.testing.assert_close(entropy(logits, mask), torch.tensor(2.0).log())
    sure = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    assert float(entropy(sure)) == 0.0
