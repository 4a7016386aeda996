from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

import mtk
from mtk.checkpoint import SafetensorsCheckpoint, StateDict
from mtk.errors import CheckpointError, UsageError
from mtk.vocabulary import Rows, Vocabulary, plan

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = ("embed.weight", "head.weight")
LABELS = ["base", "one", "two"]


def vocabulary(tokens: list[str] | dict[str, int], rows: int | None = None):
    if isinstance(tokens, list):
        tokens = {token: i for i, token in enumerate(tokens)}
    return Vocabulary(tokens=tokens, rows=rows or len(tokens), tensors=TENSORS)


def model(found: Vocabulary, seed: int, dtype=torch.float32) -> dict:
    g = torch.Generator().manual_seed(seed)
    shapes = dict.fromkeys(TENSORS, (found.rows, 3)) | {"up.weight": (4, 3)}
    return {n: torch.randn(s, generator=g).to(dtype) for n, s in shapes.items()}


BASE = vocabulary(["a", "b", "c"], rows=5)  # two rows of padding
ONE = vocabulary({"b": 0, "a": 1, "x": 2, "c": 3})  # other order, and one more token
TWO = vocabulary({"a": 0, "c": 1, "x": 2, "y": 3})  # without b
FOUND = [BASE, ONE, TWO]


def reference(tokens: dict[str, int], rows: int, states, base, padding) -> list:
    """Row by row, straight from the rule."""
    results = []
    for found, state in zip(FOUND, states, strict=True):
        table = torch.empty(rows, 3)
        for token, row in tokens.items():
            holders = [
                other["embed.weight"][voc.tokens[token]]
                for voc, other in zip(FOUND, states, strict=True)
                if token in voc.tokens
            ]
            if token in found.tokens:
                table[row] = state["embed.weight"][found.tokens[token]]
            elif base is not None and token in FOUND[base].tokens:
                table[row] = states[base]["embed.weight"][FOUND[base].tokens[token]]
            else:
                table[row] = sum(holders) / len(holders)
        for row in padding:
            table[row] = states[0]["embed.weight"][row]
        results.append(table)
    return results


@pytest.mark.parametrize("base", [0, None])
@pytest.mark.parametrize("policy", ["base", "union"])
def test_every_row_is_the_one_the_rule_names(policy: str, base: int | None) -> None:
    states = [model(found, seed) for seed, found in enumerate(FOUND)]
    made = plan(FOUND, LABELS, policy=policy, base=base)
    assert made is not None
    tokens = {"a": 0, "b": 1, "c": 2} | ({"x": 3, "y": 4} if policy == "union" else {})
    assert dict(made.tokens) == tokens
    assert dict(made.added) == ({"x": 3, "y": 4} if policy == "union" else {})
    padding = [] if policy == "union" else [3, 4]
    assert made.rows == 5
    wanted = reference(tokens, 5, states, base, padding)
    sources = [StateDict(state, n) for state, n in zip(states, LABELS, strict=True)]
    for index, table in enumerate(wanted):
        seen = Rows(sources, index, made)
        assert seen.names() == sources[index].names()
        assert seen.info("embed.weight").shape == (5, 3)
        torch.testing.assert_close(seen.read("embed.weight"), table)
        assert torch.equal(seen.read("up.weight"), states[index]["up.weight"])


def test_a_token_that_a_model_lacks_has_no_task_vector_there() -> None:
    states = [model(found, seed) for seed, found in enumerate(FOUND)]
    made = plan(FOUND, LABELS, policy="union", base=0)
    assert made is not None
    sources = [StateDict(state, n) for state, n in zip(states, LABELS, strict=True)]
    base, one, two = (Rows(sources, i, made).read("head.weight") for i in range(3))
    b, x, y = (made.tokens[token] for token in "bxy")
    assert torch.equal(two[b], base[b])
    assert torch.equal(one[y], base[y])
    assert torch.equal(base[y], states[2]["head.weight"][3])
    middle = (one[x] + two[x]) / 2
    torch.testing.assert_close(base[x], middle)


def test_merging_through_the_view_equals_merging_by_hand() -> None:
    states = [model(found, seed) for seed, found in enumerate(FOUND)]
    made = plan(FOUND, LABELS, policy="union", base=0)
    sources = [StateDict(state, n) for state, n in zip(states, LABELS, strict=True)]
    views = [Rows(sources, i, made) for i in range(3)]
    twin = mtk.Method(name="mean", target=mean, summary="mean", needs=mtk.Needs())
    merged = mtk.merge(twin, experts=views[1:]).tensors
    by_hand = [view.read("embed.weight") for view in views[1:]]
    torch.testing.assert_close(merged["embed.weight"], sum(by_hand) / 2)


def mean(*, experts):
    return sum(experts) / len(experts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_parts_of_the_whole(tmp_path: Path, dtype) -> None:
    sources = []
    for seed, found in enumerate(FOUND):
        file = tmp_path / f"{seed}.safetensors"
        save_file(model(found, seed, dtype), file)
        sources.append(SafetensorsCheckpoint([file], LABELS[seed]))
    made = plan(FOUND, LABELS, policy="union", base=0)
    for index in range(3):
        seen = Rows(sources, index, made)
        for name in seen.names():
            flat = seen.read(name).flatten().float()
            for start in range(len(flat)):
                for end in range(start, len(flat) + 1):
                    part = seen.part(name, start, end).float()
                    assert torch.equal(part, flat[start:end]), (name, start, end)


def test_many_scattered_rows_are_found_like_few(tmp_path: Path) -> None:
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0)).tolist()
    found = [
        vocabulary([str(i) for i in range(500)]),
        vocabulary([str(i) for i in order]),
    ]
    sources, states = [], [model(each, seed) for seed, each in enumerate(found)]
    for seed, state in enumerate(states):
        save_file(state, tmp_path / f"{seed}.safetensors")
        sources.append(SafetensorsCheckpoint([tmp_path / f"{seed}.safetensors"], "m"))
    seen = Rows(sources, 1, plan(found, ["m", "n"], policy="base"))
    wanted = torch.stack(
        [states[1]["embed.weight"][order.index(i)] for i in range(500)]
    )
    assert torch.equal(seen.read("embed.weight"), wanted)
    assert torch.equal(seen.part("embed.weight", 100, 1300), wanted.flatten()[100:1300])


def test_a_view_of_sources_without_parts_has_none() -> None:
    states = [model(found, seed) for seed, found in enumerate(FOUND)]
    sources = [StateDict(state, n) for state, n in zip(states, LABELS, strict=True)]
    assert not hasattr(Rows(sources, 0, plan(FOUND, LABELS, policy="base")), "part")


@pytest.mark.parametrize("policy", ["refuse", "base", "union"])
def test_equal_vocabularies_need_no_plan(policy: str) -> None:
    assert plan([BASE, BASE], LABELS[:2], policy=policy) is None
    assert plan([None, None], LABELS[:2]) is None
    assert plan([BASE, None], LABELS[:2]) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([BASE, ONE], "token 'a' has the id 0 in base, the id 1 in one"),
        (
            [BASE, vocabulary(["a", "b"], rows=5)],
            "'c' has the id 2 in base, none in one",
        ),
        ([BASE, vocabulary(["a", "b", "c"], rows=8)], "5 rows .* in base, 8 in one"),
    ],
)
def test_a_difference_is_refused_by_name(found, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as refused:
        plan(found, LABELS[:2])
    assert len(str(refused.value).splitlines()) <= 3


def test_what_cannot_be_brought_together_is_refused() -> None:
    untied = Vocabulary(tokens=ONE.tokens, rows=4, tensors=TENSORS[:1])
    with pytest.raises(CheckpointError, match=r"'head.weight' has one row per token"):
        plan([BASE, untied], LABELS[:2], policy="union")
    for policy in ("base", "union"):
        with pytest.raises(CheckpointError, match="one has no tokenizer"):
            plan([BASE, None, ONE], LABELS, policy=policy)
    stranger = vocabulary(["a", "q"])
    with pytest.raises(CheckpointError, match="no model has a row for the token 'q'"):
        plan([BASE, ONE], LABELS[:2], policy="base", donor=stranger)
    with pytest.raises(UsageError, match="refuse, base, union"):
        plan([BASE, ONE], LABELS[:2], policy="both")


def test_another_donor_gives_order_and_ids() -> None:
    donor = vocabulary(["c", "a"], rows=64)
    made = plan([BASE, ONE], LABELS[:2], policy="base", donor=donor)
    assert made is not None
    assert dict(made.tokens) == {"c": 0, "a": 1}
    # What is a token elsewhere is no padding: the result ends there.
    assert made.rows == 2
    assert [each.tolist() for each in made.maps] == [[2, 0], [3, 1]]
    with pytest.raises(CheckpointError, match="row 1 of the merged vocabulary"):
        plan(
            [BASE, ONE],
            LABELS[:2],
            policy="base",
            donor=vocabulary({"a": 0, "c": 2}, rows=3),
        )


def test_a_token_without_a_row_counts_as_missing() -> None:
    short = vocabulary({"a": 0, "b": 1, "c": 2}, rows=2)
    made = plan([BASE, short], LABELS[:2], policy="base")
    assert made is not None
    assert made.maps[1].tolist() == [0, 1, -1, -1, -1]
