"""The recipe of an expert: AdamW at a constant rate, stopped early, resumable.

A plain loop, because a run that was killed must go on to the same weights: the items of a
step follow from the seed and the step alone, and the state is one file, replaced whole.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import MethodError
from mtk.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

_META = "mtk.fitting"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """The protocol's numbers.

    Args:
        batch: items of one step, in parts of ``micro`` whose gradients are added.
        steps: at most; every ``every`` the model is scored.
        patience: scores without improvement after which it ends.
    """

    rate: float = 5e-4
    batch: int = 1024
    micro: int = 4
    steps: int = 5000
    every: int = 100
    patience: int = 5
    seed: int = 42


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is; ``history`` has all scores, as (step, score)."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    waited: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)

    def note(self, score: float) -> bool:
        """Remember a score; whether it is the best so far."""
        self.history.append((self.step, score))
        if score > self.best:
            self.best, self.best_step, self.waited = score, self.step, 0
            return True
        self.waited += 1
        return False


def fit(
    model: nn.Module,
    *,
    count: int,
    loss: Callable[[Sequence[int]], Tensor],
    score: Callable[[], float],
    regime: Regime,
    state: Path,
    report: Callable[[str, float], None],
) -> Progress:
    """Train a model in place; at the end it holds the weights of its best score.

    Args:
        model: changed in place.
        count: number of training items.
        loss: of some items, a mean over them.
        score: on validation, higher is better; before the first step, too.
        regime: the numbers.
        state: file of the unfinished run; read if it is there, left behind at the end.
        report: told how far it is.
    """
    run = _Run(model, regime, state)
    run.resume()
    progress = run.progress
    if not progress.history:
        run.keep(score())
    while progress.step < regime.steps and progress.waited < regime.patience:
        value = run.update(loss, items_of(count, regime, progress.step))
        progress.step += 1
        if not math.isfinite(value):
            raise MethodError(f"step {progress.step}: the loss is {value}")
        if progress.step % regime.every == 0 or progress.step == regime.steps:
            run.keep(score())
            run.save()
            text = f"step {progress.step}, loss {value:.3f}, best {progress.best:.3f}"
            report(text, progress.step / regime.steps)
    run.take_best()
    return progress


def begun(state: Path) -> int:
    """Steps that an unfinished run has done; 0 where there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(state, framework="pt") as file:
            return int(json.loads(file.metadata()[_META])["step"])
    except (OSError, SafetensorError, LookupError, ValueError, TypeError):
        return 0


def items_of(count: int, regime: Regime, step: int) -> list[int]:
    """The items of a step: a slice of shuffled passes, laid end to end."""
    start = step * regime.batch
    first, last = start // count, (start + regime.batch - 1) // count
    order = torch.cat([_pass(count, regime.seed, i) for i in range(first, last + 1)])
    found: list[int] = order[start - first * count :][: regime.batch].tolist()
    return found


def _pass(count: int, seed: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randperm(count, generator=generator)


class _Run:
    """Weights, their best values, the optimiser, and the file that holds all of it."""

    def __init__(self, model: nn.Module, regime: Regime, state: Path) -> None:
        self.progress = Progress()
        self._regime, self._state = regime, state
        self._weights = dict(model.named_parameters())
        for weight in self._weights.values():
            weight.requires_grad_(True)
        self._optimiser = torch.optim.AdamW(
            self._weights.values(), lr=regime.rate, weight_decay=0.0
        )
        self._best: dict[str, Tensor] = {}

    def update(
        self, loss: Callable[[Sequence[int]], Tensor], items: Sequence[int]
    ) -> float:
        """One step over a batch in small parts; returns the mean loss."""
        total = 0.0
        self._optimiser.zero_grad()
        with torch.enable_grad():
            for start in range(0, len(items), self._regime.micro):
                part = items[start : start + self._regime.micro]
                value = loss(part) * (len(part) / len(items))
                torch.autograd.backward(value)
                total += float(value.detach())
        self._optimiser.step()
        return total

    def keep(self, score: float) -> None:
        """Remember the weights if they are the best so far."""
        if self.progress.note(score):
            self._best = {
                n: w.detach().to("cpu", copy=True) for n, w in self._weights.items()
            }

    def take_best(self) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._best[name])

    def save(self) -> None:
        """Write everything that decides how the run goes on."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            tensors[f"weight.{name}"] = weight.detach()
            tensors[f"best.{name}"] = self._best[name]
            moments = self._optimiser.state[weight]
            for moment in _MOMENTS:
                tensors[f"{moment}.{name}"] = moments[moment]
        plain = {n: t.to("cpu").contiguous() for n, t in tensors.items()}
        said = {"regime": asdict(self._regime), **asdict(self.progress)}
        replace_file(self._state, [save(plain, {_META: json.dumps(said)})])

    def resume(self) -> None:
        """Go on where a run of the same regime was stopped."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._state, framework="pt") as file:
                said = json.loads(file.metadata()[_META])
                if said.pop("regime") != asdict(self._regime):
                    return
                with torch.no_grad():
                    self._take(file, said)
        except (OSError, SafetensorError, LookupError, ValueError, TypeError):
            return

    def _take(self, file: Any, said: dict[str, Any]) -> None:
        said["history"] = [(step, score) for step, score in said["history"]]
        for name, weight in self._weights.items():
            weight.copy_(file.get_tensor(f"weight.{name}"))
            self._best[name] = file.get_tensor(f"best.{name}")
            self._optimiser.state[weight] = {
                "step": torch.tensor(float(said["step"])),
                **{
                    moment: file.get_tensor(f"{moment}.{name}").to(weight.device)
                    for moment in _MOMENTS
                },
            }
        self.progress = Progress(**said)
