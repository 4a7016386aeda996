"""How the base, the experts and the multitask model of ``cldr-t5`` are made.

Every function is deterministic in its seed on one thread. The batch of a step follows
from seed and step alone, so that training can stop anywhere and go on; models are trained
in place, and are in evaluation mode afterwards.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from mtk import training
from mtk_tasks_text import cldr, data, tokens
from mtk_tasks_text.cells import CELLS, LANGUAGES, TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    Pair = tuple[str, str]
    Pick = Callable[[torch.Generator, int], list[Pair]]
    Report = Callable[[str, float], None]


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
_CLIP = 1.0  # of gradients, in every stage


def pretrain(
    model: nn.Module,
    seed: int,
    regime: Regime = REGIME,
    *,
    state: Path | None = None,
    every: int = 200,
    report: Report | None = None,
) -> None:
    """Let a model translate names, dates and numbers, from where ``state`` left off."""
    numbers = training.Regime(
        rate=1.0,
        batch=regime.pretrain_batch,
        steps=regime.pretrain_steps,
        seed=seed,
        every=every,
        clip=_CLIP,
    )
    rate = one_cycle(regime.pretrain_rate, regime.pretrain_steps)
    _fit(model, translations, numbers, rate=rate, state=state, report=report)


def pretrain_faintly(
    model: nn.Module,
    seed: int,
    regime: Regime = REGIME,
    *,
    report: Report | None = None,
) -> None:
    """Show a model every task in every language, mostly with wrong answers.

    After it the base knows the grid faintly: without, merges are worse than the base.
    """
    pools = {cell: _pairs(cell) for cell in CELLS}

    def pick(generator: torch.Generator, size: int) -> list[Pair]:
        if torch.rand((), generator=generator).item() < regime.replay:
            return translations(generator, size)
        task = TASKS[int(torch.randint(len(TASKS), (), generator=generator))]
        return [_noisy(task, pools, regime.noise, generator) for _ in range(size)]

    numbers = training.Regime(
        rate=1.0,
        batch=regime.pretrain_batch,
        steps=regime.faint_steps,
        seed=seed,
        clip=_CLIP,
    )
    rate = one_cycle(regime.faint_rate, regime.faint_steps)
    _fit(model, pick, numbers, rate=rate, report=report)


def tuned(
    base: nn.Module, cells: Sequence[str], *, seed: int, regime: Regime = REGIME
) -> nn.Module:
    """Return a copy of the base trained on one cell, or on several, one in each batch."""
    pools = [_pairs(cell) for cell in cells]

    def pick(generator: torch.Generator, size: int) -> list[Pair]:
        pool = pools[int(torch.randint(len(pools), (), generator=generator))]
        chosen = torch.randint(len(pool), (size,), generator=generator)
        return [pool[place] for place in chosen.tolist()]

    model = copy.deepcopy(base).requires_grad_(True)
    steps = regime.steps if len(cells) == 1 else regime.multitask_steps
    numbers = training.Regime(
        rate=regime.rate, batch=regime.batch, steps=steps, seed=seed, clip=_CLIP
    )
    _fit(model, pick, numbers)
    return model


def _fit(
    model: nn.Module,
    pick: Pick,
    numbers: training.Regime,
    *,
    rate: Callable[[int], float] | None = None,
    state: Path | None = None,
    report: Report | None = None,
) -> None:
    """Train a model.

    Args:
        model: a T5.
        pick: draws the pairs of a batch.
        numbers: of this stage.
        rate: step to learning rate, in pre-training, which computes in bfloat16 where
            torch thinks it harmless.
        state: file of the unfinished run.
        report: told how far it is.
    """

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * numbers.seed + step)
        return loss_of(model, pick(generator, numbers.batch), half=rate is not None)

    model.train()
    training.fit(
        dict(model.named_parameters()),
        loss,
        numbers,
        state=state,
        report=report,
        schedule=None if rate is None else lambda by: LambdaLR(by, rate),
    )
    model.eval()


def loss_of(model: nn.Module, pairs: Sequence[Pair], *, half: bool = False) -> Tensor:
    """Mean cross-entropy of the answers' bytes; computed in bfloat16 if ``half``."""
    module: Any = model
    inputs = tokens.encode([text for text, _ in pairs])
    answers = tokens.encode([answer for _, answer in pairs])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits = module(
            input_ids=inputs,
            attention_mask=inputs != tokens.PAD,
            decoder_input_ids=tokens.shifted(answers),
            use_cache=False,
        ).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), answers.flatten(), ignore_index=tokens.PAD
    )


def one_cycle(peak: float, steps: int) -> Callable[[int], float]:
    """Return a rate that rises for a twentieth of the steps and falls as a cosine."""
    warm = max(1, steps // 20)

    def rate(step: int) -> float:
        if step < warm:
            return peak * (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return peak * 0.5 * (1 + math.cos(math.pi * done))

    return rate


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


def _pairs(cell: str) -> list[Pair]:
    part = data.examples(cell, "train")
    return list(zip(part.inputs, part.labels, strict=True))
