"""The training loop that all recipes of this distribution share.

Plain AdamW at a constant rate. Everything random about the order of the data follows from
the seed and the step, so that a run that was killed goes on from its last state as if
nothing had happened; the state is one file that is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtk.errors import MethodError
from mtk.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Report = Callable[[str, float], None]

_META = "mtk.fitting"
_BEST, _MOMENTS = "best.", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """What decides a training run.

    Attributes:
        steps: at most.
        every: steps between two evaluations, or two states where there are none.
        patience: evaluations without improvement after which a run ends.
        half: float16 autocast with a gradient scaler; only on a GPU.
    """

    rate: float
    batch: int
    steps: int
    seed: int
    every: int = 50
    patience: int = 5
    half: bool = True


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is: what its state remembers beside tensors.

    Attributes:
        step: steps done.
        best, best_step: the best evaluation so far and when it was.
        waited: evaluations since.
        history: all of them, as (step, score).
        scale: of the gradient scaler.
    """

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    waited: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    scale: float = 0.0

    def note(self, score: float) -> bool:
        """Remember an evaluation; whether it is the best so far."""
        self.history.append((self.step, score))
        if score > self.best:
            self.best, self.best_step, self.waited = score, self.step, 0
            return True
        self.waited += 1
        return False


def fit(
    parameters: Mapping[str, torch.nn.Parameter],
    *,
    count: int,
    loss: Callable[[Tensor, int], Tensor],
    regime: Regime,
    state: Path,
    report: Report,
    evaluate: Callable[[], float] | None = None,
) -> Progress:
    """Train parameters in place; at the end they hold the best values, or the last.

    Args:
        parameters: what is trained, by name; all on one device.
        count: number of training items.
        loss: (items (batch,), step) -> a scalar.
        regime: the numbers.
        state: file of the unfinished run; read if it is there, left behind at the end.
        report: told how far it is.
        evaluate: score, higher is better; before the first step and then regularly.
            Without it there is no early stopping, and the last values are kept.

    Raises:
        MethodError: the loss is no number any more.
    """
    run = _Run(parameters, regime, state)
    run.resume()
    progress = run.progress
    if progress.step == 0 and evaluate is not None and not progress.history:
        run.keep(evaluate())
    while progress.step < regime.steps and progress.waited < regime.patience:
        items = batch_of(count, regime, progress.step)
        value = run.update(loss, items)
        progress.step += 1
        if not math.isfinite(value):
            raise MethodError(f"step {progress.step}: the loss is {value}")
        if progress.step % regime.every == 0 or progress.step == regime.steps:
            if evaluate is not None:
                run.keep(evaluate())
            run.save()
            shown = (
                f"loss {value:.3f}" if evaluate is None else f"best {progress.best:.3f}"
            )
            report(f"step {progress.step}, {shown}", progress.step / regime.steps)
    if evaluate is not None:
        run.take_best()
    return progress


def begun(state: Path) -> int:
    """Steps that an unfinished run has done; 0 where there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(state, framework="pt") as file:
            return int(json.loads(file.metadata()[_META])["progress"]["step"])
    except (OSError, SafetensorError, LookupError, ValueError, TypeError):
        return 0


def batch_of(count: int, regime: Regime, step: int) -> Tensor:
    """The items of one step: a slice of shuffled passes, laid end to end."""
    start = step * regime.batch
    wanted = range(start, start + regime.batch)
    passes = range(wanted[0] // count, wanted[-1] // count + 1)
    order = torch.cat([_pass(count, regime.seed, number) for number in passes])
    first = start - passes[0] * count
    return order[first : first + regime.batch]


def _pass(count: int, seed: int, number: int) -> Tensor:
    raw = hashlib.sha256(f"pass {seed} {number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(raw[:7], "big"))
    return torch.randperm(count, generator=generator)


class _Run:
    """Parameters, optimiser and progress of one run."""

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], regime: Regime, state: Path
    ) -> None:
        self.parameters, self.regime, self._state = dict(parameters), regime, state
        self.progress = Progress()
        self._best: dict[str, Tensor] = {}
        self._optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=regime.rate, weight_decay=0.0
        )
        self._device = next(iter(self.parameters.values())).device
        self._half = regime.half and self._device.type == "cuda"
        self._scaler = torch.amp.GradScaler("cuda", enabled=self._half)

    def update(self, loss: Callable[[Tensor, int], Tensor], items: Tensor) -> float:
        """One step of the optimiser; the loss before it."""
        with self._cast():
            value = loss(items, self.progress.step)
        self._optimiser.zero_grad()
        torch.autograd.backward(self._scaler.scale(value))
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return float(value.detach())

    def _cast(self) -> Any:
        if self._half:
            return torch.autocast("cuda", torch.float16)
        return contextlib.nullcontext()

    def keep(self, score: float) -> None:
        """Remember an evaluation, and the parameters if it is the best."""
        if self.progress.note(score):
            self._best = {n: p.detach().clone() for n, p in self.parameters.items()}

    def take_best(self) -> None:
        """Put the best values into the parameters."""
        with torch.no_grad():
            for name, value in self._best.items():
                self.parameters[name].copy_(value)

    def save(self) -> None:
        """Replace the state file."""
        from safetensors.torch import save

        self.progress.scale = float(self._scaler.get_scale()) if self._half else 0.0
        tensors = {name: p.detach() for name, p in self.parameters.items()}
        tensors |= {_BEST + name: value for name, value in self._best.items()}
        for name, parameter in self.parameters.items():
            moments = self._optimiser.state[parameter]
            tensors |= {f"{part}.{name}": moments[part] for part in _MOMENTS}
        plain = {name: t.to("cpu").contiguous() for name, t in tensors.items()}
        meta = {"regime": asdict(self.regime), "progress": asdict(self.progress)}
        replace_file(self._state, [save(plain, {_META: json.dumps(meta)})])

    def resume(self) -> None:
        """Go on from the state file, if it is of a run like this."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._state, framework="pt") as file:
                meta = json.loads(file.metadata()[_META])
                if meta["regime"] != asdict(self.regime):
                    return
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no iterator
            for name, parameter in self.parameters.items():
                if tensors[name].shape != parameter.shape:
                    return
            progress = meta["progress"]
        except (OSError, SafetensorError, LookupError, ValueError, TypeError):
            return  # none, or of something else: begin at the beginning
        self._restore(tensors, progress)

    def _restore(self, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
        progress["history"] = [
            (int(step), score) for step, score in progress["history"]
        ]
        self.progress = Progress(**progress)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
                self._optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.progress.step)),
                    **{
                        part: tensors[f"{part}.{name}"].to(self._device)
                        for part in _MOMENTS
                    },
                }
        self._best = {
            name: tensors[_BEST + name].to(self._device)
            for name in self.parameters
            if _BEST + name in tensors
        }
        if self._half and self.progress.scale:
            self._scaler.load_state_dict(
                {**self._scaler.state_dict(), "scale": self.progress.scale}
            )
