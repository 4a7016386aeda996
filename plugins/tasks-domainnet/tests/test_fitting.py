"""The shared training loop: its order, its early stopping, and going on after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mtk.errors import MethodError
from mtk_tasks_domainnet import fitting

REGIME = fitting.Regime(rate=0.1, batch=4, steps=12, seed=1, every=2, patience=3)


class Killed(Exception):
    pass


class Toy:
    """Least squares; ``scores`` are what its evaluations give, in turn."""

    def __init__(self, scores=None, kill_at=None):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(10, 3, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 3.0])
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.scores, self.kill_at = scores, kill_at
        self.seen = []
        self.evaluated = []

    def loss(self, items, step):
        if step == self.kill_at:
            raise Killed
        self.seen.append(items.tolist())
        return (self.x[items] @ self.weight - self.y[items]).square().mean()

    def evaluate(self):
        self.evaluated.append(self.weight.detach().clone())
        if self.scores is not None:
            return self.scores[len(self.evaluated) - 1]
        return -float((self.x @ self.evaluated[-1] - self.y).square().mean())

    def run(self, state, regime=REGIME, *, scored=True):
        return fitting.fit(
            {"weight": self.weight},
            count=10,
            loss=self.loss,
            regime=regime,
            state=state,
            report=lambda message, fraction: None,
            evaluate=self.evaluate if scored else None,
        )


def test_steps_are_those_of_adamw(tmp_path):
    toy = Toy()
    toy.run(tmp_path / "s", scored=False)
    weight = torch.nn.Parameter(torch.zeros(3))
    plain = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)
    for items in toy.seen:
        plain.zero_grad()
        (toy.x[items] @ weight - toy.y[items]).square().mean().backward()
        plain.step()
    torch.testing.assert_close(toy.weight, weight, rtol=0, atol=0)


def test_every_pass_takes_every_item_once(tmp_path):
    toy = Toy()
    toy.run(tmp_path / "s", replace(REGIME, steps=5), scored=False)
    order = [item for items in toy.seen for item in items]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_a_batch_may_be_longer_than_a_pass():
    regime = replace(REGIME, batch=7)
    found = torch.cat([fitting.batch_of(3, regime, step) for step in range(3)])
    assert len(found) == 21
    assert torch.bincount(found).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("scores", "steps", "best_step"),
    [
        ([0.5, 0.4, 0.4, 0.4, 9.0], 6, 0),  # the step 0 stays the best
        ([0.1, 0.2, 0.2, 0.2, 0.2, 9.0], 8, 2),  # equal is no improvement
        ([0.1, 0.2, 0.1, 0.1, 0.3, 0.2, 0.2, 9.0], 12, 8),  # patience begins anew
    ],
)
def test_training_stops_after_patience_and_keeps_the_best(
    tmp_path, scores, steps, best_step
):
    toy = Toy(scores)
    progress = toy.run(tmp_path / "s")
    assert (progress.step, progress.best_step) == (steps, best_step)
    assert [step for step, _ in progress.history] == list(range(0, steps + 1, 2))
    assert progress.best == max(scores[: len(progress.history)])
    assert torch.equal(toy.weight, toy.evaluated[best_step // 2])


@pytest.mark.parametrize("kill_at", [3, 8, 11])
@pytest.mark.parametrize("scored", [True, False])
def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path, kill_at, scored):
    whole = Toy()
    wanted = whole.run(tmp_path / "whole", scored=scored)
    with pytest.raises(Killed):
        Toy(kill_at=kill_at).run(tmp_path / "s", scored=scored)
    assert fitting.begun(tmp_path / "s") == kill_at - kill_at % 2
    again = Toy()
    progress = again.run(tmp_path / "s", scored=scored)
    assert len(again.seen) == 12 - (kill_at - kill_at % 2)
    assert progress == wanted
    assert torch.equal(again.weight, whole.weight)


def test_a_state_of_another_regime_or_a_damaged_one_is_not_used(tmp_path):
    state = tmp_path / "s"
    with pytest.raises(Killed):
        Toy(kill_at=5).run(state)
    other = Toy()
    other.run(state, replace(REGIME, rate=0.2))
    assert len(other.seen) == 12
    state.write_bytes(state.read_bytes()[:-1])
    again = Toy()
    again.run(state)
    assert len(again.seen) == 12
    assert fitting.begun(tmp_path / "none") == 0


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    toy = Toy()
    toy.y[:] = float("nan")
    with pytest.raises(MethodError, match="step 1"):
        toy.run(tmp_path / "s")
