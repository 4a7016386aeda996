"""AdaMerging and AdaMerging++: learn merging coefficients by minimising entropy.

Paper: Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR
2024, arXiv:2310.02575.

    W_l  = theta_0,l + sum_i clamp(L_li, 0, 1) tau_i,l         tau_i = theta_i - theta_0
    loss = sum over tasks of mean_x -sum_c p_c log p_c         p = softmax(logits_W(x))
           (over the positions that count, where outputs are sequences)
    dloss/dL_li = <dloss/dW_l, tau_i,l>  where 0 <= L_li <= 1, else 0
    L    = Adam(L, dloss/dL)

theta_0: ``base``, theta_i: ``experts[i]``, L: the coefficients (rows, k), with a row
for every tensor l (``granularity`` tensor) or one for all (task). Ordinary gradients
of the weights are contracted with the task vectors, so that no graph spans the merge.
With ``plus_plus`` the tau_i are first trimmed and cleared of disagreeing signs
(``_trimming``). Only unlabelled inputs are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtk.errors import ParameterError
from mtk_methods_adaptive._learning import ALL, combine, learn
from mtk_methods_adaptive._trimming import agree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtk import LiveTask
    from mtk.randomness import Random

    State = Mapping[str, Tensor]


def merge(
    *,
    experts: Sequence[State],
    base: State,
    tasks: Sequence[LiveTask],
    granularity: str,
    plus_plus: bool,
    density: float,
    clamp: bool,
    initial: float | list[float],
    learning_rate: float,
    steps: int,
    batch_size: int,
    batches_per_step: int,
    random: Random,
) -> dict[str, Tensor]:
    """Learn the coefficients on unlabelled inputs and merge with them."""
    deltas = task_vectors(experts, base, plus_plus=plus_plus, density=density)
    coefficients = learn(
        base,
        deltas,
        start(initial, list(deltas), len(experts), granularity),
        clamp=clamp,
        learning_rate=learning_rate,
        steps=steps,
        streams=[
            (task, task.batches(batch_size, random.generator(index)))
            for index, task in enumerate(tasks)
        ],
        batches_per_step=batches_per_step,
    )
    return combine(base, deltas, coefficients, clamp=clamp)


def merge_with(
    *,
    experts: Sequence[State],
    base: State,
    coefficients: Mapping[str, Tensor],
    plus_plus: bool = False,
    density: float = 0.2,
    clamp: bool = True,
) -> dict[str, Tensor]:
    """Merge with coefficients that are known: tensor name, or ``all``, -> (k,)."""
    deltas = task_vectors(experts, base, plus_plus=plus_plus, density=density)
    return combine(base, deltas, coefficients, clamp=clamp)


def task_vectors(
    experts: Sequence[State], base: State, *, plus_plus: bool, density: float
) -> dict[str, Tensor]:
    """Tensor name -> task vectors of all experts, (k, n)."""
    deltas = {
        name: torch.stack([(expert[name] - tensor).flatten() for expert in experts])
        for name, tensor in base.items()
    }
    return agree(deltas, density) if plus_plus else deltas


def start(
    initial: float | list[float], names: Sequence[str], experts: int, granularity: str
) -> dict[str, Tensor]:
    """The coefficients before the first step: row name -> (k,)."""
    values = initial if isinstance(initial, list) else [initial] * experts
    if len(values) != experts:
        raise ParameterError(
            f"adamerging: 'initial' has {len(values)} numbers for {experts} experts"
        )
    rows = [ALL] if granularity == "task" else names
    return {row: torch.tensor(values, dtype=torch.float32) for row in rows}
