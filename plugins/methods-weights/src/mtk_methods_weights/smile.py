"""SMILE: the base plus low-rank differences that the input itself routes between.

Paper: Tang et al., "SMILE: Zero-Shot Sparse Mixture of Low-Rank Experts Construction
From Pre-Trained Foundation Models", 2024, arXiv:2408.10174.

    D_i = W_i - W_0 = U_i diag(S_i) V_i^T             (m, n), for every linear layer
    l_i = | V_i[:, :g]^T x |                           router, g = ``gate_rank``
    w   = softmax(l) on its ``top_k`` largest, divided by their sum
    y   = W_0 x + b_0 + sum_i w_i (U_i[:, :r] diag(S_i[:r]) V_i[:, :r]^T x + b_i - b_0)

W_0, b_0: ``base``, W_i, b_i: ``experts[i]``, r: ``rank`` (-1 or >= min(m, n): D_i as it
is). Parts of a layer: ``gate`` (k, g, n), ``left`` (k, m, r) and ``right`` (k, r, n),
or ``difference`` (k, m, n), and ``bias`` (k, m). Singular directions beyond the
numerical rank never route. A layer without differences stays at the base, its bias
too; all other tensors are the base or the experts' average (``rest``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import ParameterError
from mtk.results import Routed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtk import TensorInfo

# Differences smaller than this, relative to the base weight, are rounding of float32.
RELATIVE_ZERO = 1e-7
# Right singular vectors of smaller singular values, relative to the largest, are an
# arbitrary basis of the null space.
RELATIVE_RANK = 1e-6


def merge(
    *,
    experts: list[Tensor],
    base: Tensor,
    info: TensorInfo,
    gate_rank: int,
    rank: int,
    router_source: str,
    rest: str,
    **_: Any,
) -> Routed | Tensor:
    """The base tensor, with routing parts for weights and biases of linear layers."""
    if rank == 0:
        raise ParameterError(
            "smile: parameter 'rank' must be -1 (dense) or >= 1, not 0"
        )
    if info.role == "linear":
        return Routed(base, _parts(experts, base, gate_rank, rank, router_source))
    if info.role == "bias":
        differences = torch.stack([expert - base for expert in experts])
        changed = bool((differences != 0).any())
        return Routed(base, {"bias": differences} if changed else {})
    return base if rest == "base" else torch.stack(experts).mean(0)


def _parts(
    experts: list[Tensor], base: Tensor, gate_rank: int, rank: int, router_source: str
) -> dict[str, Tensor]:
    differences = [expert - base for expert in experts]  # each (m, n)
    smallest = RELATIVE_ZERO * torch.linalg.vector_norm(base)
    if all(torch.linalg.vector_norm(d) <= smallest for d in differences):
        return {}
    full = min(base.shape)
    dense = rank < 0 or rank >= full
    gates, left, right = [], [], []
    for expert, difference in zip(experts, differences, strict=True):
        u, s, vh = torch.linalg.svd(difference, full_matrices=False)
        if not dense:
            left.append(u[:, :rank])
            right.append(s[:rank, None] * vh[:rank])
        if router_source == "weight":
            _, s, vh = torch.linalg.svd(expert, full_matrices=False)
        real = (s > RELATIVE_RANK * s[0])[:gate_rank, None]
        gates.append(torch.where(real, vh[:gate_rank], 0.0))
    gate = {"gate": torch.stack(gates)}  # (k, g, n)
    if dense:
        return gate | {"difference": torch.stack(differences)}
    return gate | {"left": torch.stack(left), "right": torch.stack(right)}


def route(*, x: Tensor, parts: Mapping[str, Tensor], top_k: int, **_: Any) -> Tensor:
    """What is added to the output of one linear layer.

    Args:
        x: inputs of the layer, (..., n).
        parts: as :func:`merge` made them.
        top_k: experts per token; more than there are means all.

    Returns:
        The correction, (..., m).
    """
    if "gate" not in parts:  # only biases differ: the layer stays at the base
        return x.new_zeros(*x.shape[:-1], parts["bias"].shape[1])
    gate = parts["gate"]
    tokens = x.reshape(-1, x.shape[-1]).to(gate.dtype)  # (t, n)
    weights = _weights(tokens, gate, top_k)  # (t, k)
    out_features = parts["difference" if "difference" in parts else "left"].shape[1]
    result = tokens.new_zeros(len(tokens), out_features)
    for index in range(len(gate)):
        rows = weights[:, index].nonzero().flatten()
        if rows.numel():
            output = _expert(tokens[rows], parts, index)
            result.index_add_(0, rows, weights[rows, index, None] * output)
    return result.reshape(*x.shape[:-1], out_features).to(x.dtype)


def _weights(tokens: Tensor, gate: Tensor, top_k: int) -> Tensor:
    """Weight of each expert for each token, (t, k), zero outside the ``top_k``."""
    logits = torch.linalg.vector_norm(
        torch.einsum("tn,kgn->tkg", tokens, gate), dim=2
    )  # (t, k)
    # A stable sort, so that equal logits go to the smaller index.
    values, chosen = logits.sort(dim=1, descending=True, stable=True)
    values, chosen = values[:, :top_k], chosen[:, :top_k]
    return torch.zeros_like(logits).scatter(1, chosen, values.softmax(1))


def _expert(tokens: Tensor, parts: Mapping[str, Tensor], index: int) -> Tensor:
    if "difference" in parts:
        output = tokens @ parts["difference"][index].T
    else:
        output = tokens @ parts["right"][index].T @ parts["left"][index].T
    return output + parts["bias"][index] if "bias" in parts else output
