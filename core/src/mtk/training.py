"""The training loop that tracks share: AdamW, early stopping, and going on after a kill.

A plain loop and no library, because the same models must come out of every run, byte for
byte, also of one that was killed in the middle: what a step sees follows from the seed and
its number alone, and an unfinished run is one file that is replaced as a whole. Models of
open_clip, diffusers and transformers differ in their loss only, which the track gives.
``docs/explanation/protocol.md`` says more.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtk.declare import TensorInfo
from mtk.errors import MethodError, UsageError
from mtk.randomness import stream
from mtk.writing import layout, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    Loss = Callable[[int], Tensor | Iterable[Tensor]]

_META = "mtk.training"
_NOW, _BEST, _MOMENTS = "now.", "best.", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """The numbers that decide a training run.

    Attributes:
        rate: learning rate.
        batch: items of one step.
        steps: at most.
        seed: of the order of items, and of whatever else is random.
        every: steps between two evaluations, or two states where there are none.
        patience: evaluations without improvement after which a run ends.
        decay: AdamW's weight decay.
        clip: norm to which gradients are cut; None leaves them as they are.
        half: float16 autocast with a gradient scaler; only on a GPU.
    """

    rate: float
    batch: int
    steps: int
    seed: int = 0
    every: int = 50
    patience: int = 5
    decay: float = 0.0
    clip: float | None = None
    half: bool = True


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is: what its state remembers beside tensors.

    Attributes:
        step: steps done.
        best, best_step: the best evaluation so far and when it was.
        waited: evaluations since.
        history: all of them, as (step, score).
    """

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    waited: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)

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
    loss: Loss,
    regime: Regime,
    *,
    state: Path | None = None,
    identity: str = "",
    report: Callable[[str, float], None] | None = None,
    evaluate: Callable[[], float] | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
) -> Progress:
    """Train parameters in place; at the end they hold the best values, or the last.

    Args:
        parameters: what is trained, by name; all on one device.
        loss: number of a step -> its loss, a scalar; or, to save memory, its parts one
            after the other, whose sum is the loss. Called for steps in order.
        regime: the numbers.
        state: file of the unfinished run; read if it is there, left behind at the end.
            A run without one cannot go on later.
        identity: what the run starts from and learns from, such as a hash; a state of
            another one is not used.
        report: told how far it is.
        evaluate: score, higher is better; before the first step and then regularly.
            Without it there is no early stopping, and the last values are kept.
        schedule: makes a schedule of torch's, which is asked after every step. Without
            it the rate is constant.

    Raises:
        MethodError: the loss is no number any more.
    """
    run = _Run(parameters, regime, schedule, identity)
    if state is not None:
        run.resume(state)
    progress = run.progress
    if evaluate is not None and not progress.history:
        run.keep(evaluate())
    while progress.step < regime.steps and progress.waited < regime.patience:
        value = run.update(loss)
        if not math.isfinite(value):
            raise MethodError(f"step {progress.step}: the loss is {value}")
        if progress.step % regime.every == 0 or progress.step == regime.steps:
            if evaluate is not None:
                run.keep(evaluate())
            if state is not None:
                run.save(state)
            if report is not None:
                best = "" if evaluate is None else f", best {progress.best:.3f}"
                text = f"step {progress.step}, loss {value:.3f}{best}"
                report(text, progress.step / regime.steps)
    if evaluate is not None:
        run.take_best()
    return progress


def items(count: int, step: int, regime: Regime) -> Tensor:
    """The items of one step, int64 ``(batch,)``: shuffled passes, laid end to end.

    Every pass over ``count`` items takes each of them once, in an order of its own, so a
    batch may hold the end of one pass and the beginning of the next.
    """
    start = step * regime.batch
    first, last = start // count, (start + regime.batch - 1) // count
    passes = [
        torch.randperm(count, generator=stream(regime.seed, "pass", number))
        for number in range(first, last + 1)
    ]
    return torch.cat(passes)[start - first * count :][: regime.batch]


@contextlib.contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Let what takes no generator, such as dropout, draw from ``stream(seed, *names)``.

    Holds for a block; torch's own generators go on afterwards as if nothing had happened.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(stream(seed, *names).initial_seed())
        yield


def device_named(name: str) -> torch.device:
    """A device that is there.

    Raises:
        UsageError: it is not.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"there is no device {name!r} here") from error


def begun(state: Path) -> int:
    """Steps that an unfinished run has done; 0 where there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(state, framework="pt") as file:
            return int(json.loads(file.metadata()[_META])["progress"]["step"])
    except (OSError, SafetensorError, LookupError, ValueError, TypeError):
        return 0


class _Run:
    """Parameters, optimiser, schedule and progress of one run."""

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        regime: Regime,
        schedule: Callable[[Optimizer], LRScheduler] | None,
        identity: str,
    ) -> None:
        self._parameters, self._regime = dict(parameters), regime
        self._identity = identity
        self.progress = Progress()
        self._best: dict[str, Tensor] = {}
        device = next(iter(self._parameters.values())).device
        on_gpu = device.type == "cuda"
        # Where torch keeps its count of steps.
        self._counter = device if on_gpu else torch.device("cpu")
        self._optimiser = torch.optim.AdamW(
            self._parameters.values(),
            lr=regime.rate,
            weight_decay=regime.decay,
            fused=on_gpu,  # else a step makes a temporary copy of all parameters
        )
        self._optimiser.zero_grad()
        self._schedule = None if schedule is None else schedule(self._optimiser)
        self._half = regime.half and on_gpu
        self._scaler = torch.amp.GradScaler("cuda", enabled=self._half)

    def update(self, loss: Loss) -> float:
        """One step of the optimiser; the loss before it."""
        total = 0.0
        with torch.enable_grad():
            for part in self._parts(loss):
                torch.autograd.backward(self._scaler.scale(part))
                total += float(part.detach())
        if self._regime.clip is not None:
            self._scaler.unscale_(self._optimiser)
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._regime.clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad()  # and give back their memory, until the next step
        if self._schedule is not None:
            self._schedule.step()
        self.progress.step += 1
        return total

    def _parts(self, loss: Loss) -> Iterator[Tensor]:
        """The loss, computed in half precision where that is asked for."""
        with self._cast():
            found = loss(self.progress.step)
        if isinstance(found, Tensor):
            yield found
            return
        parts = iter(found)
        while True:
            with self._cast():
                part = next(parts, None)
            if part is None:
                return
            yield part

    def _cast(self) -> contextlib.AbstractContextManager[object]:
        if self._half:
            return torch.autocast("cuda", torch.float16)
        return contextlib.nullcontext()

    def keep(self, score: float) -> None:
        """Remember an evaluation, and the parameters if it is the best."""
        if not self.progress.note(score):
            return
        if not self._best:
            self._best = {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in self._parameters.items()
            }
        for name, value in self._best.items():
            value.copy_(self._parameters[name].detach())

    def take_best(self) -> None:
        """Put the best values into the parameters."""
        with torch.no_grad():
            for name, value in self._best.items():
                self._parameters[name].copy_(value)

    def save(self, state: Path) -> None:
        """Replace the state file; one tensor at a time comes from the device."""
        tensors = {_BEST + name: value for name, value in self._best.items()}
        for name, parameter in self._parameters.items():
            moments = self._optimiser.state[parameter]
            tensors[_NOW + name] = parameter.detach()
            tensors |= {f"{part}.{name}": moments[part] for part in _MOMENTS}
        infos = layout(
            TensorInfo(
                name=name,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
            )
            for name, tensor in tensors.items()
        )
        rows = ((info.name, tensors[info.name]) for info in infos)
        write_safetensors(state, infos, rows, {_META: json.dumps(self._meta())})

    def _meta(self) -> dict[str, Any]:
        (group,) = self._optimiser.param_groups
        schedule = None if self._schedule is None else self._schedule.state_dict()
        return {
            "regime": asdict(self._regime),
            "identity": self._identity,
            "progress": asdict(self.progress),
            "optimiser": {
                key: value for key, value in group.items() if key != "params"
            },
            "schedule": schedule,
            "scaler": self._scaler.state_dict(),
        }

    def resume(self, state: Path) -> None:
        """Go on from the state file, if it is of a run like this."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(state, framework="pt") as file:
                meta = json.loads(file.metadata()[_META])
                own = [asdict(self._regime), self._identity]
                if [meta["regime"], meta["identity"]] != own:
                    return
                # A mapping, because it lacks the iterator that a dict has.
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for name, parameter in self._parameters.items():
                if tensors[_NOW + name].shape != parameter.shape:
                    return
            self._restore(tensors, meta)
        except (OSError, SafetensorError, LookupError, ValueError, TypeError):
            return  # none, or of something else: begin at the beginning

    def _restore(self, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        said = meta["progress"]
        said["history"] = [(int(step), score) for step, score in said["history"]]
        progress = Progress(**said)
        moments = {
            name: {part: tensors[f"{part}.{name}"] for part in _MOMENTS}
            for name in self._parameters
        }
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[_NOW + name])
                self._optimiser.state[parameter] = {
                    "step": torch.tensor(float(progress.step), device=self._counter),
                    **{k: v.to(parameter.device) for k, v in moments[name].items()},
                }
        if self._schedule is not None:
            self._schedule.load_state_dict(meta["schedule"])
        self._optimiser.param_groups[0].update(meta["optimiser"])
        self._best = {
            name: tensors[_BEST + name]
            for name in self._parameters
            if _BEST + name in tensors
        }
        if self._half:
            self._scaler.load_state_dict(meta["scaler"])
        self.progress = progress
