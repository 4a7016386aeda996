"""How the LoRA experts of ``domainnet-sd21`` are trained.

The paper's rank, rate, steps and prompts are unknown; these are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mtk import training
from mtk.randomness import stream
from mtk_tasks_domainnet import computing, diffusion, pooling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from mtk.training import Progress, Regime

EXPERT = training.Regime(rate=1e-4, batch=16, steps=1000, seed=42, every=100)
MULTITASK = replace(EXPERT, steps=10_000)
RANK = 16  # and alpha, so that the scale is 1
# PEFT reads a string as a pattern; a list would be stored in a random order.
TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Training images of one cell.

    Attributes:
        latents: ``(n, c, h, w)``.
        prompts: for each, its place in ``states``, ``(n,)``.
        states: of the cell's prompts, ``(k, length, width)``.
    """

    latents: Tensor
    prompts: Tensor
    states: Tensor


def adapted(unet: nn.Module, *, seed: int, rank: int = RANK) -> Any:
    """The UNet with a fresh LoRA adapter on its attention projections."""
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = peft.get_peft_model(unet, config)
    return model


def train(
    model: Any,
    parts: Sequence[Part],
    scheduler: Any,
    *,
    regime: Regime,
    state: Path,
    identity: str = "",
    report: Callable[[str, float], None],
    device: str = "cpu",
) -> Progress:
    """Train an adapter in place; a fixed number of steps, without early stopping.

    Args:
        model: of `adapted`.
        parts: cells, pooled as they are.
        scheduler: of training; it says what the UNet predicts.
        regime: the numbers.
        state: file of the unfinished run.
        identity: what it must have in common with this one.
        report: told how far it is.
        device: where to train.
    """
    sizes = [len(part.prompts) for part in parts]
    times = int(scheduler.config.num_train_timesteps)
    with computing.lent(model, device) as there:

        def loss(step: int) -> Tensor:
            chosen = [
                (parts[cell], place)
                for cell, place in pooling.chosen(sizes, step, regime)
            ]
            latents = torch.stack([part.latents[place] for part, place in chosen])
            states = torch.stack(
                [part.states[int(part.prompts[place])] for part, place in chosen]
            )
            generator = stream(regime.seed, "noise", step)
            noise = torch.randn(latents.shape, generator=generator).to(there)
            time = torch.randint(times, (len(latents),), generator=generator).to(there)
            latents, states = latents.to(there), states.to(there)
            found = diffusion.predicted(model, scheduler, latents, noise, time, states)
            wanted = diffusion.target(scheduler, latents, noise, time)
            return functional.mse_loss(found.float(), wanted.float())

        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        return training.fit(
            parameters, loss, regime, state=state, identity=identity, report=report
        )


def save_adapter(model: Any, folder: Path) -> None:
    """Write an adapter as PEFT's folder; it names no base, which others could open."""
    model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(str(folder))
