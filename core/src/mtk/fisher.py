"""Diagonal Fisher information of a model's outputs, example by example.

The log-likelihood of an example is the mean over its counted positions, of

    categorical:  log softmax(outputs)[target]
    gaussian:     -1/2 |target - outputs|^2

and its squared gradients are averaged over the examples (arXiv 2111.09832). They are
computed for many examples at once where ``vmap`` can, else one after the other.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtk import batches
from mtk.errors import UsageError
from mtk.randomness import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mtk.batches import Batch
    from mtk.live import LiveTask

    Weights = dict[str, Tensor]

# Per-example gradients of this many bytes are held at a time.
_GRADIENT_BYTES = 256 << 20
_BATCH = 256
ESTIMATORS = ("exact", "sampled", "empirical", "argmax")


def fisher(
    task: LiveTask,
    tensors: Mapping[str, Tensor],
    chosen: Tensor,
    *,
    estimator: str = "exact",
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Tensor]:
    """Diagonal Fisher information on the ``chosen`` examples.

    ``exact`` sums over all classes weighted by their probability, ``sampled`` draws one
    target per position from the model, ``empirical`` takes the true one, ``argmax`` the
    most likely class. Where outputs are not (n, classes), ``exact`` is ``sampled``.
    """
    say = tell or (lambda _: None)
    weights = {
        name: tensor.detach().float()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    with torch.no_grad():
        first = task.outputs(weights, batches.take(task.inputs, chosen[:1]))
    used = _possible(estimator, task, first, say)
    count = first.shape[-1] if used == "exact" else 1
    size = sum(tensor.numel() * 4 for tensor in weights.values()) * count
    sums = {
        name: torch.zeros_like(tensor, dtype=torch.float64)
        for name, tensor in weights.items()
    }
    engine = _Squares(task, exact=used == "exact", say=say)
    generator = stream(seed, "sampled labels", task.name)
    for part in chosen.split(max(1, min(_BATCH, _GRADIENT_BYTES // size))):
        inputs = batches.take(task.inputs, part)
        with torch.no_grad():
            outputs = task.outputs(weights, inputs).float()  # (n, *positions, C)
        share = _shares(task, inputs, outputs)
        if used == "exact":
            # One position each, whose share is 1 or 0.
            found = engine(weights, outputs.softmax(-1) * share[:, None], inputs)
        else:
            target = _targets(used, task, part, inputs, outputs, generator)
            if task.output == "categorical":
                target = target.where(share > 0, 0)
            found = engine(weights, None, inputs, target, share)
        for name, square in found.items():
            sums[name] += square.double()
    return {
        name: (total / len(chosen)).float()
        for name, total in sums.items()
        if bool(total.any())
    }


def _possible(
    estimator: str, task: LiveTask, outputs: Tensor, say: Callable[[str], None]
) -> str:
    """The estimator that can be used on outputs of this kind."""
    gaussian = task.output == "gaussian"
    if estimator == "argmax" and gaussian:
        raise UsageError(
            f"task {task.name!r}: gaussian outputs have no arg-max class; "
            "use estimator=sampled or empirical"
        )
    if estimator == "exact" and (gaussian or outputs.ndim > 2):
        what = "gaussian" if gaussian else "sequences"
        say(f"Fisher of sampled targets, not exact, because outputs are {what}")
        return "sampled"
    return estimator


def _shares(task: LiveTask, inputs: Batch, outputs: Tensor) -> Tensor:
    """Of each position in its example's mean, (n, *positions); 0 where it is masked."""
    mask = task.counted(inputs)
    shape = outputs.shape[:-1]
    counts = torch.ones(shape) if mask is None else mask.reshape(shape).float()
    total: Tensor = counts.flatten(1).sum(1) if len(shape) > 1 else counts
    return counts / total.clamp_min(1).view(-1, *(1,) * (len(shape) - 1))


def _targets(
    estimator: str,
    task: LiveTask,
    part: Tensor,
    inputs: Batch,
    outputs: Tensor,
    generator: torch.Generator,
) -> Tensor:
    if estimator == "sampled" and task.output == "gaussian":
        return outputs + torch.randn(outputs.shape, generator=generator)
    if estimator == "sampled":
        p = outputs.softmax(-1).flatten(0, -2)
        return torch.multinomial(p, 1, generator=generator).view(outputs.shape[:-1])
    if estimator == "argmax":
        return outputs.argmax(-1)
    if task.targets is not None:
        return task.targets(inputs)
    labels = task.labels
    if isinstance(labels, Tensor) and labels.ndim == 1 and outputs.ndim == 2:
        return labels[part]
    raise UsageError(
        f"task {task.name!r}: the empirical Fisher needs labelled data, and targets "
        "from the track where labels are no classes; use estimator=sampled"
    )


class _Squares:
    """Sums over examples of squared gradients of their log-likelihoods."""

    def __init__(
        self, task: LiveTask, *, exact: bool, say: Callable[[str], None]
    ) -> None:
        self._task, self._exact, self._say, self._looped = task, exact, say, False

    def __call__(self, weights: Weights, p: Tensor | None, *items: Any) -> Weights:
        """Items are (inputs,) with the classes' weights ``p``, or (inputs, target, share)."""
        if not self._looped:
            try:
                with _friendly():
                    return self._together(weights, p, items)
            except Exception as error:  # a real error comes back in the loop
                self._looped = True
                self._say(
                    "Fisher one example at a time, because torch.func.vmap cannot run "
                    f"this model ({type(error).__name__})"
                )
        return self._one_by_one(weights, p, items)

    def _together(
        self, weights: Weights, p: Tensor | None, items: tuple[Any, ...]
    ) -> Weights:
        places = (None, *(0 for _ in items))
        if p is None:
            found = vmap(grad(self._likelihood), in_dims=places)(weights, *items)
            return {name: g.square().sum(0) for name, g in found.items()}
        found = vmap(jacrev(self._classes), in_dims=places)(weights, *items)
        return {  # (n, classes, *shape)
            name: torch.einsum("nc,nc...->...", p, j.square())
            for name, j in found.items()
        }

    def _one_by_one(
        self, weights: Weights, p: Tensor | None, items: tuple[Any, ...]
    ) -> Weights:
        sums = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        leaves = {name: t.detach().requires_grad_() for name, t in weights.items()}
        for i in range(batches.size(items[0])):
            own: list[Any] = [batches.take(x, torch.tensor(i)) for x in items]
            with torch.enable_grad():
                if p is None:
                    values, factors = [self._likelihood(leaves, *own)], [1.0]
                else:
                    values = list(self._classes(leaves, *own))
                    factors = p[i].tolist()
            for value, factor in zip(values, factors, strict=True):
                found = torch.autograd.grad(
                    value, list(leaves.values()), retain_graph=True, allow_unused=True
                )
                for name, g in zip(leaves, found, strict=True):
                    if g is not None:
                        sums[name] += factor * g.square()
        return sums

    def _classes(self, weights: Weights, item: Batch) -> Tensor:
        """Log-probabilities of all classes, (C,)."""
        outputs = self._task.outputs(weights, batches.alone(item))[0].float()
        return torch.log_softmax(outputs, dim=-1)

    def _likelihood(
        self, weights: Weights, item: Batch, target: Tensor, share: Tensor
    ) -> Tensor:
        """Mean log-likelihood over the counted positions; a number."""
        outputs = self._task.outputs(weights, batches.alone(item))[0].float()
        if self._task.output == "gaussian":
            logs = -0.5 * (target - outputs).square().sum(-1)
        else:
            logs = outputs.log_softmax(-1).gather(-1, target[..., None])[..., 0]
        return (logs * share).sum()


@contextlib.contextmanager
def _friendly() -> Iterator[None]:
    """Attention written out, which ``vmap`` can batch; no advice about slow operations."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield
