"""How the base, the experts and the multitask model of ``cldr-t5`` are made.

Every function is deterministic in its seed on one thread. The batch of a step follows
from seed and step alone, so that training can stop anywhere and go on.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mtk_tasks_text import cldr, data, tokens
from mtk_tasks_text.cells import CELLS, HELD_IN, LANGUAGES, TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    Pair = tuple[str, str]
    Pick = Callable[[torch.Generator, int], list[Pair]]
    After = Callable[[int, nn.Module, torch.optim.Optimizer], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """The numbers that decide how hard the track is.

    Attributes:
        pretrain_steps: steps on translating names, dates and numbers.
        pretrain_rate: their peak learning rate.
        faint_steps: steps in which each task appears in every language.
        faint_rate: their peak learning rate.
        noise: share of answers replaced by another item's in those steps.
        replay: share of translations in those steps.
        steps: steps of one expert.
        rate: constant learning rate of an expert.
        multitask_steps: steps of the multitask model over all held-in cells.
        pretrain_batch: items per step of both stages of pre-training.
        batch: items per step of experts and multitask model.
    """

    pretrain_steps: int = 3000
    pretrain_rate: float = 2e-3
    faint_steps: int = 1200
    faint_rate: float = 1e-3
    noise: float = 0.5
    replay: float = 0.3
    steps: int = 80
    rate: float = 3e-4
    multitask_steps: int = 240
    pretrain_batch: int = 64
    batch: int = 16


REGIME = Regime()

# Shares of names, dates and numbers in the first stage.
_MIXTURE = (0.5, 0.8, 1.0)
_NUMBERS_FROM = 640  # those before it may belong to a split
_NUMBERS = 9_000


def translations(generator: torch.Generator, size: int) -> list[Pair]:
    """Draw translations of one sort, for a batch of inputs of like length."""
    sort = torch.rand((), generator=generator).item()
    return [_translation(generator, sort) for _ in range(size)]


def _translation(generator: torch.Generator, sort: float) -> Pair:
    def pick(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    source = pick(len(LANGUAGES))
    target = (source + 1 + pick(len(LANGUAGES) - 1)) % len(LANGUAGES)
    if sort < _MIXTURE[0]:
        entity = cldr.entities()[pick(len(cldr.entities()))]
        here, there = (entity.names[i] for i in (source, target))
    elif sort < _MIXTURE[1]:
        day = data.day("pretrain", pick(data.PRETRAIN_DAYS))
        style = cldr.DATE_FORMATS[pick(len(cldr.DATE_FORMATS))]
        here, there = (
            cldr.write_date(day, style, LANGUAGES[i]) for i in (source, target)
        )
    else:
        value, style = data.number(_NUMBERS_FROM + pick(_NUMBERS))
        here, there = (
            cldr.write_number(value, style, LANGUAGES[i]) for i in (source, target)
        )
    return data.translation(here, LANGUAGES[target]), there


def train(
    model: nn.Module,
    pick: Pick,
    *,
    steps: int,
    size: int,
    seed: int,
    rate: Callable[[int], float],
    first: int = 0,
    half: bool = False,
    optimiser: torch.optim.Optimizer | None = None,
    after: After | None = None,
) -> None:
    """Train a model in place with AdamW.

    Args:
        model: a T5.
        pick: draws the pairs of a batch.
        steps: where to stop.
        size: items per batch.
        seed: with the number of the step it decides the batch.
        rate: step to learning rate.
        first: the step to begin with.
        half: compute in bfloat16 where torch thinks it harmless.
        optimiser: one that already has its state.
        after: is called after every step.
    """
    optimiser = optimiser or adamw(model)
    module: Any = model
    module.train()
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        pairs = pick(generator, size)
        inputs = tokens.encode([text for text, _ in pairs])
        answers = tokens.encode([answer for _, answer in pairs])
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = module(
                input_ids=inputs,
                attention_mask=inputs != tokens.PAD,
                decoder_input_ids=tokens.shifted(answers),
                use_cache=False,
            ).logits
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1), answers.flatten(), ignore_index=tokens.PAD
        )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if after is not None:
            after(step, model, optimiser)
    module.eval()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser that all stages use."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)


def one_cycle(peak: float, steps: int) -> Callable[[int], float]:
    """Return a rate that rises for a twentieth of the steps and falls as a cosine."""
    warm = max(1, steps // 20)

    def rate(step: int) -> float:
        if step < warm:
            return peak * (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return peak * 0.5 * (1 + math.cos(math.pi * done))

    return rate


def pretrain_faintly(
    model: nn.Module, seed: int, regime: Regime = REGIME, after: After | None = None
) -> None:
    """Show a model, in place, every task in every language, mostly with wrong answers.

    After it the base knows the grid faintly: without, merges are worse than the base.
    """
    pools = {cell: _pairs(cell) for cell in CELLS}

    def pick(generator: torch.Generator, size: int) -> list[Pair]:
        if torch.rand((), generator=generator).item() < regime.replay:
            return translations(generator, size)
        task = TASKS[int(torch.randint(len(TASKS), (), generator=generator))]
        return [_noisy(task, pools, regime.noise, generator) for _ in range(size)]

    train(
        model,
        pick,
        steps=regime.faint_steps,
        size=regime.pretrain_batch,
        seed=seed,
        rate=one_cycle(regime.faint_rate, regime.faint_steps),
        half=True,
        after=after,
    )


def _noisy(
    task: str,
    pools: dict[str, list[Pair]],
    noise: float,
    generator: torch.Generator,
) -> Pair:
    """Draw a language and an item, often with the answer of some other item."""
    language = LANGUAGES[int(torch.randint(len(LANGUAGES), (), generator=generator))]
    pool = pools[f"{task}-{language}"]
    mine, other = torch.randint(len(pool), (2,), generator=generator).tolist()
    wrong = torch.rand((), generator=generator).item() < noise
    return pool[mine][0], pool[other if wrong else mine][1]


def finetune(
    base: nn.Module, cell: str, *, seed: int, regime: Regime = REGIME
) -> nn.Module:
    """Return an expert: a copy of the base that was trained on one cell."""
    return _tuned(base, [cell], regime.steps, seed, regime)


def multitask(
    base: nn.Module,
    cells: Sequence[str] = HELD_IN,
    *,
    seed: int,
    regime: Regime = REGIME,
) -> nn.Module:
    """Return a copy of the base trained on all cells, one in each batch."""
    return _tuned(base, cells, regime.multitask_steps, seed, regime)


def _tuned(
    base: nn.Module, cells: Sequence[str], steps: int, seed: int, regime: Regime
) -> nn.Module:
    pools = [_pairs(cell) for cell in cells]

    def pick(generator: torch.Generator, size: int) -> list[Pair]:
        pool = pools[int(torch.randint(len(pools), (), generator=generator))]
        chosen = torch.randint(len(pool), (size,), generator=generator)
        return [pool[place] for place in chosen.tolist()]

    model = copy.deepcopy(base).requires_grad_(True)
    train(
        model,
        pick,
        steps=steps,
        size=regime.batch,
        seed=seed,
        rate=lambda _: regime.rate,
    )
    return model


def _pairs(cell: str) -> list[Pair]:
    part = data.examples(cell, "train")
    return list(zip(part.inputs, part.labels, strict=True))
