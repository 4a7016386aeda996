"""The shared training loop: its order, its early stopping, and going on after a kill."""

from __future__ import annotations

import resource
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from mtk import training
from mtk.errors import MethodError, UsageError

REGIME = training.Regime(rate=0.1, batch=4, steps=12, seed=1, every=2, patience=3)


class Killed(Exception):
    pass


def cycle(optimiser):
    return torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=13)


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

    def loss(self, step):
        if step == self.kill_at:
            raise Killed
        items = training.items(10, step, self.regime)
        self.seen.append(items.tolist())
        return self.squares(items).mean()

    def squares(self, items):
        return (self.x[items] @ self.weight - self.y[items]).square()

    def evaluate(self):
        self.evaluated.append(self.weight.detach().clone())
        if self.scores is not None:
            return self.scores[len(self.evaluated) - 1]
        return -float((self.x @ self.evaluated[-1] - self.y).square().mean())

    def run(self, state=None, regime=REGIME, *, scored=True, **more):
        self.regime = regime
        return training.fit(
            {"weight": self.weight},
            more.pop("loss", self.loss),
            regime,
            state=state,
            evaluate=self.evaluate if scored else None,
            **more,
        )


def test_steps_are_those_of_adamw():
    toy = Toy()
    toy.run(regime=replace(REGIME, decay=0.5, clip=0.3), scored=False, schedule=cycle)
    weight = torch.nn.Parameter(torch.zeros(3))
    plain = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    schedule = cycle(plain)
    for items in toy.seen:
        plain.zero_grad()
        (toy.x[items] @ weight - toy.y[items]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_([weight], 0.3)
        plain.step()
        schedule.step()
    assert len(toy.seen) == 12
    torch.testing.assert_close(toy.weight, weight, rtol=0, atol=0)


def test_parts_of_a_loss_add_up_to_the_same_step():
    whole, parted = Toy(), Toy()
    whole.run(scored=False)

    def parts(step):
        items = training.items(10, step, parted.regime)
        return (parted.squares(part).sum() / len(items) for part in items.split(3))

    parted.run(scored=False, loss=parts)
    torch.testing.assert_close(parted.weight, whole.weight)


def test_every_pass_takes_every_item_once():
    toy = Toy()
    toy.run(regime=replace(REGIME, steps=5), scored=False)
    order = [item for items in toy.seen for item in items]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_a_batch_may_be_longer_than_a_pass():
    regime = replace(REGIME, batch=7)
    found = torch.cat([training.items(3, step, regime) for step in range(3)])
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


@pytest.mark.parametrize("schedule", [None, cycle])
@pytest.mark.parametrize("kill_at", [3, 8, 11])
@pytest.mark.parametrize("scored", [True, False])
def test_a_killed_run_ends_as_if_nothing_had_happened(
    tmp_path, kill_at, scored, schedule
):
    more = {"scored": scored, "schedule": schedule}
    whole = Toy()
    wanted = whole.run(tmp_path / "whole", **more)
    with pytest.raises(Killed):
        Toy(kill_at=kill_at).run(tmp_path / "s", **more)
    assert training.begun(tmp_path / "s") == kill_at - kill_at % 2
    again = Toy()
    progress = again.run(tmp_path / "s", **more)
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
    state.unlink()
    with pytest.raises(Killed):
        Toy(kill_at=5).run(state, identity="base one")
    moved = Toy()
    moved.run(state, identity="base two")
    assert len(moved.seen) == 12
    state.write_bytes(state.read_bytes()[:-1])
    again = Toy()
    again.run(state)
    assert len(again.seen) == 12
    assert training.begun(tmp_path / "none") == 0


def test_a_state_that_cannot_be_written_says_so_and_leaves_the_old_one(tmp_path):
    state = tmp_path / "s"
    with pytest.raises(Killed):
        Toy(kill_at=5).run(state)
    before = state.read_bytes()
    with file_size_limit(200), pytest.raises(UsageError, match="could not be written"):
        Toy().run(state)
    assert state.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@contextmanager
def file_size_limit(size):
    """Writing beyond this many bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_killed_run_on_a_gpu_ends_as_if_nothing_had_happened(tmp_path):
    def toy(**more):
        made = Toy(**more)
        made.x, made.y = made.x.cuda(), made.y.cuda()
        made.weight = torch.nn.Parameter(made.weight.detach().cuda())
        return made

    whole, again = toy(), toy()
    whole.run(tmp_path / "whole", scored=False)
    with pytest.raises(Killed):
        toy(kill_at=8).run(tmp_path / "s", scored=False)
    again.run(tmp_path / "s", scored=False)
    assert torch.equal(again.weight, whole.weight)


def test_a_loss_that_is_no_number_stops_the_run():
    toy = Toy()
    toy.y[:] = float("nan")
    with pytest.raises(MethodError, match="step 1"):
        toy.run(scored=False)


def test_dropout_is_a_function_of_its_names_and_disturbs_nobody():
    def draw(*names):
        with training.seeded(3, *names):
            return torch.nn.functional.dropout(torch.ones(64), 0.5)

    torch.manual_seed(0)
    wanted = torch.rand(4)
    torch.manual_seed(0)
    assert torch.equal(draw("dropout", 1), draw("dropout", 1))
    assert not torch.equal(draw("dropout", 1), draw("dropout", 2))
    assert torch.equal(torch.rand(4), wanted)


def test_it_tells_how_far_it_is():
    told = []
    Toy().run(scored=False, report=lambda text, share: told.append((text, share)))
    assert [share for _, share in told] == [step / 12 for step in range(2, 13, 2)]
    assert told[-1][0].startswith("step 12, loss 3.4")
