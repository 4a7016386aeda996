from __future__ import annotations

import pytest
import torch
from torch import nn

import mtk
from mtk.errors import CheckpointError, UsageError
from mtk.live import ExplicitAttention, LiveTask, expose_linears, linear_layers, routed
from mtk.statistics import collect

D_IN, CLASSES = 5, 3


@pytest.fixture
def task() -> LiveTask:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(D_IN, 4), nn.Tanh(), nn.Linear(4, CLASSES, bias=False)
    )
    return LiveTask(
        name="t",
        module=model,
        forward=lambda module, x: module(x),
        inputs=torch.randn(20, D_IN),
        labels=torch.randint(0, CLASSES, (20,)),
    )


def weights(task: LiveTask) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in task.module.named_parameters()}


def reference_fisher(task: LiveTask, estimator: str) -> dict[str, torch.Tensor]:
    """One backward per example and class, as the paper writes it."""
    sums = {name: torch.zeros_like(p) for name, p in task.module.named_parameters()}
    for x, label in zip(task.inputs, task.labels, strict=True):
        p = task.module(x[None])[0].softmax(-1).detach()
        if estimator == "exact":
            terms = [(p[y], y) for y in range(CLASSES)]
        else:
            terms = [(1.0, int(label) if estimator == "empirical" else int(p.argmax()))]
        for weight, y in terms:
            task.module.zero_grad()
            task.module(x[None])[0].log_softmax(-1)[y].backward()
            for name, parameter in task.module.named_parameters():
                sums[name] += weight * parameter.grad**2
    return {name: total / len(task.inputs) for name, total in sums.items()}


@pytest.mark.parametrize("estimator", ["exact", "empirical", "argmax"])
def test_fisher_equals_the_plain_loop(task: LiveTask, estimator: str) -> None:
    got = collect("fisher", task, weights(task), estimator=estimator)
    want = reference_fisher(task, estimator)
    assert set(got) == set(want)
    for name in want:
        torch.testing.assert_close(got[name], want[name])


def test_sampled_fisher_converges_to_the_exact_one(task: LiveTask) -> None:
    exact = collect("fisher", task, weights(task))
    draws = [
        collect("fisher", task, weights(task), estimator="sampled", seed=s)
        for s in range(200)
    ]
    mean = torch.stack([d["2.weight"] for d in draws]).mean(0)
    torch.testing.assert_close(mean, exact["2.weight"], rtol=0.2, atol=0.02)
    again = collect("fisher", task, weights(task), estimator="sampled", seed=3)
    assert torch.equal(again["2.weight"], draws[3]["2.weight"])


def test_fisher_of_a_linear_softmax_model_has_its_closed_form() -> None:
    x = torch.randn(1, D_IN)
    model = nn.Linear(D_IN, CLASSES, bias=False)
    one = LiveTask(name="t", module=model, forward=lambda m, x: m(x), inputs=x)
    p = model(x)[0].softmax(-1).detach()
    want = (p * (1 - p))[:, None] * x**2
    torch.testing.assert_close(collect("fisher", one, weights(one))["weight"], want)


def test_gram_is_the_mean_outer_product_of_the_inputs(task: LiveTask) -> None:
    got = collect("gram", task, weights(task))
    x = task.inputs
    torch.testing.assert_close(got["0.weight"], x.T @ x / len(x))
    h = torch.tanh(task.module[0](x)).detach()
    torch.testing.assert_close(got["2.weight"], h.T @ h / len(h))
    assert set(got) == {"0.weight", "2.weight"}
    few = collect("gram", task, weights(task), examples=3)
    assert torch.linalg.matrix_rank(few["0.weight"], rtol=1e-4) == 3


def test_statistics_use_the_given_weights_not_the_modules(task: LiveTask) -> None:
    zero = {name: torch.zeros_like(tensor) for name, tensor in weights(task).items()}
    assert not collect("gram", task, zero)["2.weight"].any()
    assert collect("gram", task, weights(task))["2.weight"].any()


def test_what_cannot_be_collected_is_refused(task: LiveTask) -> None:
    unlabelled = LiveTask(
        name="t", module=task.module, forward=task.forward, inputs=task.inputs
    )
    with pytest.raises(UsageError, match="labelled"):
        collect("fisher", unlabelled, weights(task), estimator="empirical")
    with pytest.raises(UsageError, match="no statistic"):
        collect("kfac", task, weights(task))
    empty = LiveTask(
        name="t", module=task.module, forward=task.forward, inputs=task.inputs[:0]
    )
    with pytest.raises(UsageError, match="no examples"):
        collect("gram", empty, weights(task))


def test_batches_cover_everything_and_are_seeded(task: LiveTask) -> None:
    def first(count: int, seed: int) -> torch.Tensor:
        stream = task.batches(5, torch.Generator().manual_seed(seed))
        return torch.cat([next(stream) for _ in range(count)])

    assert torch.equal(first(4, 0).sort(0)[0], task.inputs.sort(0)[0])
    assert torch.equal(first(9, 1), first(9, 1))
    x, y = next(task.labelled_batches(5, torch.Generator().manual_seed(0)))
    assert len(x) == len(y) == 5
    nameless = LiveTask(
        name="t", module=task.module, forward=task.forward, inputs=task.inputs
    )
    with pytest.raises(CheckpointError, match="labels"):
        next(nameless.labelled_batches(5, torch.Generator()))


@pytest.mark.parametrize("batch_first", [True, False])
def test_explicit_attention_equals_the_fused_one(batch_first: bool) -> None:
    fused = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    x = torch.randn(3, 5, 8)
    length = 5 if batch_first else 3
    mask = torch.full((length, length), float("-inf")).triu(1)
    want, _ = fused(x, x, x, need_weights=False, attn_mask=mask)
    holder = expose_linears(nn.ModuleDict({"attn": fused}))
    got, _ = holder["attn"](x, x, x, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(got, want)
    assert set(holder.state_dict()) == {f"attn.{name}" for name in fused.state_dict()}
    assert set(linear_layers(holder)) == {"attn.in_proj_weight", "attn.out_proj.weight"}


def test_attention_that_cannot_be_made_explicit_is_refused() -> None:
    with pytest.raises(CheckpointError):
        ExplicitAttention(nn.MultiheadAttention(8, 2, kdim=4, vdim=4))
    explicit = ExplicitAttention(nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.randn(1, 2, 8)
    with pytest.raises(CheckpointError):
        explicit(x, x.clone(), x)


def test_routing_adds_to_a_layer_and_leaves_no_trace(task: LiveTask) -> None:
    x = task.inputs
    before = task.module(x)
    routing = {"0.weight": {"shift": torch.ones(4)}}

    def route(*, x, parts, gain):
        return gain * parts["shift"].expand(*x.shape[:-1], 4)

    with routed(task.module, routing, route, {"gain": 2.0}):
        changed = task.module(x)
    want = task.module[2](torch.tanh(task.module[0](x) + 2))
    torch.testing.assert_close(changed, want)
    assert torch.equal(task.module(x), before)
    with pytest.raises(CheckpointError, match="no linear layer"):
        routed(task.module, {"9.weight": {}}, route, {})


def test_tensor_info_is_part_of_the_public_names() -> None:
    assert mtk.TensorInfo(name="a", shape=(1,), dtype="float32").role == "other"
