"""Router weights: one row per expert, from prompts that describe it or at random.

For expert e and layer l, with p a prompt and h the donor's state of a token:

- ``hidden``: the residual stream that *enters* layer l, at the last token of p.
- ``hidden_avg``: the same, averaged over the tokens of p.
- ``hidden_gate``: what a router in layer l will see, at the last token of p: the state
  after attention and after the norm before the MLP.
- ``cheap_embed``: the sum of the input embeddings of all tokens of all prompts; the same
  for every layer.

States are averaged over the prompts of an expert, the average over its negative prompts is
subtracted, and the row is scaled to length 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtk.errors import CheckpointError, ParameterError, UsageError, first_line
from mtk.randomness import stream
from mtk_adapters_moe.running import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

# Prompts that run at once. Weights are read once per batch; states of few tokens are small.
BATCH = 8
# A vector shorter than this share of its parts is their rounding error.
_CANCELLED = 1e-6


def random_rows(
    gate: str, seed: int, names: Sequence[str], experts: int, width: int
) -> dict[str, Tensor]:
    """Rows of N(0, 1), or of a fresh linear layer, U(-1/sqrt(d), 1/sqrt(d))."""
    rows: dict[str, Tensor] = {}
    for name in names:
        drawn = []
        for expert in range(experts):
            generator = stream(seed, expert, name)
            if gate == "random":
                drawn.append(torch.randn(width, generator=generator))
            else:
                unit = torch.rand(width, generator=generator)
                drawn.append((2 * unit - 1) * width**-0.5)
        rows[name] = torch.stack(drawn)  # (experts, d)
    return rows


def tokenizer_of(path: Path) -> Callable[[str], list[int]]:
    """The donor's own tokenizer: text -> ids, with the first token of a text in front."""
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(
            f"{path}: its tokenizer could not be loaded: {first_line(error)}\n"
            "Prompts are read with the donor's tokenizer; gates random and "
            "uniform_random need none"
        ) from error

    def encode(text: str) -> list[int]:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        if not ids:
            raise ParameterError(f"the prompt {text!r} has no tokens")
        return ids

    return encode


def embedded_rows(
    embeddings: Tensor,
    encode: Callable[[str], list[int]],
    prompts: Sequence[Sequence[str]],
    negative: Sequence[Sequence[str]],
) -> Tensor:
    """Rows of ``cheap_embed``, (experts, d)."""
    rows = []
    for number, (texts, others) in enumerate(zip(prompts, negative, strict=True)):
        row = _unit(_summed(embeddings, encode, texts), 0.0, number)
        if others:
            away = _unit(_summed(embeddings, encode, others), 0.0, number)
            row = _unit(row - away, 2.0, number)
        rows.append(row)
    return torch.stack(rows)


def _summed(
    embeddings: Tensor, encode: Callable[[str], list[int]], texts: Sequence[str]
) -> Tensor:
    ids = [i for text in texts for i in encode(text)]
    _check_ids(ids, len(embeddings))
    return embeddings[torch.tensor(ids)].float().sum(0)


def _check_ids(ids: Sequence[int], rows: int) -> None:
    if ids and max(ids) >= rows:
        raise CheckpointError(
            f"the tokenizer gives token {max(ids)}, but the donor has {rows} embeddings"
        )


def hidden_rows(
    path: Path,
    gate: str,
    encode: Callable[[str], list[int]],
    prompts: Sequence[Sequence[str]],
    negative: Sequence[Sequence[str]],
) -> Tensor:
    """Rows from states of the running donor, (layers, experts, d)."""
    model = load_model(path, causal=True)
    wanted: list[Tensor] = []
    for number, (texts, others) in enumerate(zip(prompts, negative, strict=True)):
        state = _mean_state(model, gate, encode, texts)
        size = torch.linalg.vector_norm(state, dim=-1, keepdim=True)
        if others:
            away = _mean_state(model, gate, encode, others)
            size = size + torch.linalg.vector_norm(away, dim=-1, keepdim=True)
            state = state - away
        wanted.append(_unit(state, size, number))
    return torch.stack(wanted, dim=1)


def _unit(vectors: Tensor, size: Tensor | float, expert: int) -> Tensor:
    """Vectors (..., d) of length 1; those that vanished against ``size`` are refused."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    if bool((length <= _CANCELLED * size).any()):
        raise UsageError(
            f"the prompts of expert {expert} give no direction: they are cancelled by its "
            "negative prompts"
        )
    unit: Tensor = vectors / length
    return unit


def _mean_state(
    model: Any, gate: str, encode: Callable[[str], list[int]], texts: Sequence[str]
) -> Tensor:
    """The average of the prompts' states, (layers, d)."""
    encoded = [encode(text) for text in texts]
    for ids in encoded:
        _check_ids(ids, model.get_input_embeddings().weight.shape[0])
    total = torch.zeros(())
    for start in range(0, len(encoded), BATCH):
        total = total + states(model, gate, encoded[start : start + BATCH]).sum(0)
    return total / len(encoded)


def states(model: Any, gate: str, encoded: Sequence[Sequence[int]]) -> Tensor:
    """One state for each prompt and layer, (prompts, layers, d).

    Prompts are padded on the left. Padding is masked, and positions are counted from a
    prompt's own first token, so a prompt gives the same alone and among others.
    """
    longest = max(map(len, encoded))
    pads = [longest - len(ids) for ids in encoded]
    ids = torch.tensor(
        [[0] * pad + list(i) for pad, i in zip(pads, encoded, strict=True)]
    )
    mask = torch.arange(longest) >= torch.tensor(pads)[:, None]  # (prompts, tokens)
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    weights = mask[:, :, None].float()  # (prompts, tokens, 1)
    seen: list[Tensor] = []

    def keep(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        state = arguments[0] if arguments else keywords["hidden_states"]
        if gate == "hidden_avg":
            seen.append((state.float() * weights).sum(1) / weights.sum(1))
        else:
            seen.append(state[:, -1].float())

    handles = []
    for layer in model.model.layers:
        place = layer.mlp if gate == "hidden_gate" else layer
        handles.append(place.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with torch.no_grad():
            model.model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=places,
                use_cache=False,
            )
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen, dim=1)


def condition(rows: Tensor) -> float:
    """The condition number of a router's matrix (experts, d): 1 is best."""
    values = torch.linalg.svdvals(rows.double())
    return float(values[0] / values[-1]) if float(values[-1]) > 0 else float("inf")
