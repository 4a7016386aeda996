"""The numbers of an expert's training, and the loss of one step in parts.

The loop itself is `mtk.training`. A batch of 1,024 items does not fit into a card, so a
step's loss comes as the losses of small parts, whose gradients are added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.training import Regime, items, seeded
from mtk_tasks_crosslingual import model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

# The protocol's; its experts were trained in float32, so nothing is halved.
PROTOCOL = Regime(
    rate=5e-4, batch=1024, steps=5000, every=100, patience=5, seed=42, half=False
)


def parts_of(
    module: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    regime: Regime,
    micro: int,
) -> Callable[[int], Iterator[Tensor]]:
    """What `mtk.training.fit` asks for: number of a step -> the parts of its loss.

    Args:
        module: an mT5 on its device; it is put into training mode, with the dropout
            of its config.
        tokenizer: of the model.
        pairs: prompt and answer of every training item.
        regime: the numbers.
        micro: items of one part.
    """
    device = next(module.parameters()).device

    def loss(step: int) -> Iterator[Tensor]:
        chosen = items(len(pairs), step, regime).tolist()
        for start in range(0, len(chosen), micro):
            part = chosen[start : start + micro]
            prompts, answers = zip(*(pairs[item] for item in part), strict=True)
            batch = model.encode(tokenizer, prompts, answers)
            module.train()  # an evaluation may have come between
            with seeded(regime.seed, "dropout", step, start):
                mean = model.loss(module, {n: t.to(device) for n, t in batch.items()})
            yield mean * (len(part) / len(chosen))

    return loss
