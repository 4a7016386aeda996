"""Sparse upcycling: a mixture of experts whose experts are the MLPs of dense models.

Everything but the MLPs comes from one dense model, the donor. In every layer, expert e has
the MLP of the e-th model, ``W + noise_scale N(0, 1)``, its down projection times
``residual_scale``; routers come from prompts or chance (:mod:`mtk_adapters_moe.gates`).
The class of the result is one of transformers' own. (Komatsuzaki et al., arXiv:2212.05055,
whose experts start as copies of one MLP; the routers from prompts are common practice.)

Tensors are read, changed and written one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtk.errors import ParameterError
from mtk.folders import check_folder
from mtk.parameters import complete
from mtk_adapters_moe import gates
from mtk_adapters_moe.donors import EMBEDDINGS
from mtk_adapters_moe.parameters import PARAMS, PROMPTED
from mtk_adapters_moe.planning import Plan
from mtk_adapters_moe.writing import write_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtk_adapters_moe.donors import Model

# Above it, rows of a router point so much alike that the experts hardly differ.
MOST_CONDITION = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcycled:
    """What was written.

    Args:
        path: the folder.
        family: class of the result, ``mixtral`` ...
        params: the complete parameters.
        warnings: what the user should know, one sentence each.
        condition: the largest condition number of a router; 1 is best.
        bytes: size of the weights.
    """

    path: Path
    family: str
    params: dict[str, Any]
    warnings: tuple[str, ...]
    condition: float
    bytes: int


def upcycle(
    donor: Path | str,
    experts: Sequence[Model],
    output: Path | str,
    *,
    family: str | None = None,
    gate: str = "hidden_gate",
    top_k: int = 2,
    prompts: Sequence[Sequence[str]] | None = None,
    negative_prompts: Sequence[Sequence[str]] | None = None,
    noise_scale: float | Sequence[float] = 0.0,
    residual_scale: float | Sequence[float] = 1.0,
    seed: int = 0,
    shared_expert: Model | None = None,
    shared_prompts: Sequence[str] = (),
    shared_scale: float = 1.0,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Upcycled:
    """Write a mixture of experts to the folder ``output``.

    Args:
        donor: folder of the dense model that gives all but the MLPs, and the tokenizer.
        experts: dense models of the donor's shape: folders, or open checkpoints.
        output: a new folder.
        family: ``mixtral``, ``qwen2_moe`` or ``qwen3_moe``; by default the first that
            fits the donor.
        gate: ``hidden_gate``, ``hidden``, ``hidden_avg``, ``cheap_embed`` (from prompts),
            ``random``, ``uniform_random`` (to be trained).
        top_k: experts per token.
        prompts: for each expert, texts of the kind it is for.
        negative_prompts: for each expert, texts it is not for.
        noise_scale: standard deviation of noise on the MLP weights; one number, or one
            per expert.
        residual_scale: factor on the down projections; the same.
        seed: of noise and of random gates.
        shared_expert: family ``qwen2_moe`` only: a model every token uses besides. The
            class multiplies it by a sigmoid, which is 1/2 without ``shared_prompts``.
        shared_prompts: texts that open the shared expert's gate.
        shared_scale: factor on the shared expert's down projections.
        dtype: of the result; the donor's when left out.
        overwrite: replace a result of mtk that is there.

    Raises:
        UsageError: something does not fit; nothing was written.
    """
    params = complete(
        PARAMS,
        {
            "gate": gate,
            "top_k": top_k,
            "noise_scale": noise_scale,
            "residual_scale": residual_scale,
            "seed": seed,
        },
        owner="upcycle",
        experts=len(experts),
    )
    inputs = [Path(m) for m in (donor, *experts) if isinstance(m, str | Path)]
    check_folder(Path(output), inputs, overwrite=overwrite)
    plan = Plan(Path(donor), experts, shared_expert, family, params, dtype)
    texts = _checked(plan, prompts, negative_prompts)
    rows, shared_rows = _routers(plan, texts, list(shared_prompts))
    plan.add_all(rows, shared_rows, shared_scale)
    worst = max(gates.condition(matrix) for matrix in rows.values())
    if worst > MOST_CONDITION:
        plan.warnings.append(
            f"the routers are degenerate (condition number {worst:.1f}, more than "
            f"{MOST_CONDITION:g}): their experts' prompts are too much alike"
        )
    size = write_model(
        Path(output),
        donor=Path(donor),
        config=plan.config(),
        tensors=plan.tensors,
        inputs=[d.folder for d in plan.inputs if d.folder is not None],
        record={"family": plan.family.name, "params": params, **texts},
        warnings=plan.warnings,
        overwrite=overwrite,
    )
    return Upcycled(
        path=Path(output),
        family=plan.family.name,
        params=params,
        warnings=tuple(plan.warnings),
        condition=worst,
        bytes=size,
    )


def _checked(
    plan: Plan,
    prompts: Sequence[Sequence[str]] | None,
    negative: Sequence[Sequence[str]] | None,
) -> dict[str, list[list[str]]]:
    """Prompts for every expert where the gate needs them."""
    count, gate = len(plan.experts), plan.params["gate"]
    result = {}
    for what, given in (("prompts", prompts), ("negative_prompts", negative)):
        texts = [list(group) for group in given or [[]] * count]
        if len(texts) != count or any(isinstance(group, str) for group in given or ()):
            raise ParameterError(
                f"upcycle: {what} takes a list of texts for each of {count} experts"
            )
        result[what] = texts
    lacking = [i for i, texts in enumerate(result["prompts"]) if not any(texts)]
    if gate in PROMPTED and lacking:
        raise ParameterError(
            f"upcycle: gate {gate} needs prompts for every expert; expert {lacking[0]} "
            "has none\nGates random and uniform_random need none, but training"
        )
    if gate not in PROMPTED and len(lacking) < count:
        plan.warnings.append(f"gate {gate} uses no prompts; those given do nothing")
    return result


def _routers(
    plan: Plan, prompts: dict[str, list[list[str]]], shared: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Router name -> (experts, d), and layer -> (1, d) of the shared expert's gate."""
    gate, layers = plan.params["gate"], plan.donor.layers
    names = [plan.family.router(layer) for layer in layers]
    count = len(plan.experts)
    if shared and (plan.shared is None or gate not in PROMPTED):
        raise ParameterError(
            "upcycle: shared_prompts need a shared expert, and a gate made from prompts"
        )
    if gate not in PROMPTED:
        width = plan.donor.width
        return gates.random_rows(gate, plan.params["seed"], names, count, width), {}
    encode = gates.tokenizer_of(plan.path)
    texts, others = prompts["prompts"], prompts["negative_prompts"]
    if shared:
        texts, others = [*texts, shared], [*others, []]
    if gate == "cheap_embed":
        table = plan.donor.source.read(EMBEDDINGS)
        row = gates.embedded_rows(table, encode, texts, others)
        matrices = [row] * len(layers)
    else:
        found = gates.hidden_rows(plan.path, gate, encode, texts, others)
        matrices = list(found)
    rows = {n: m[:count].clone() for n, m in zip(names, matrices, strict=True)}
    extra = {
        layer: matrix[count:].clone()
        for layer, matrix in zip(layers, matrices, strict=True)
        if shared
    }
    return rows, extra
