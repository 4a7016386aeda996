"""Tied tensors are found by their numbers, however many look alike."""

from __future__ import annotations

import torch

from mtk.checkpoint import StateDict
from mtk.declare import Method
from mtk.job import Job
from mtk.tied import find_tied


class Counting(StateDict):
    """A state dict that says how often its tensors are read."""

    reads = 0

    def read(self, name):
        Counting.reads += 1
        return super().read(name)


def job_of(*states, **changes):
    method = Method(name="m", target=print, summary="s")
    experts = [Counting(state, f"e{i}") for i, state in enumerate(states)]
    return Job(method=method, experts=experts, base=None, params={}, **changes)


def plain(*states):
    """Every pair, compared as a whole."""
    names = sorted(n for n, t in states[0].items() if t.ndim > 1 and t.numel())
    tied = {}
    for i, name in enumerate(names):
        if len(states[0][name].unique()) == 1:
            continue
        for other in names[:i]:
            same = all(
                s[name].shape == s[other].shape
                and s[name].dtype == s[other].dtype
                and torch.equal(s[name], s[other])
                for s in states
            )
            if same and other not in tied:
                tied[name] = other
                break
    return tied


def test_against_comparing_every_pair():
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.randint(0, 3, (4, 5), generator=draw).float() for _ in "ab")
    late = one.clone()
    late[-1, -1] += 1  # differs after the first entries
    state = {
        "a": one, "b": two, "c": one.clone(), "d": late, "e": two.clone(),
        "f": one.clone(), "g": torch.ones(4, 5), "h": torch.ones(4, 5),
        "i": one.half(), "j": one.flatten(), "k": one.flatten(), "l": torch.ones(0, 3),
    }  # fmt: skip
    other = dict(state, f=late.clone())  # tied in one model only
    for states in ([state], [state, state], [state, other], [other, state]):
        found = find_tied(job_of(*states))
        assert found == plain(*states)
        assert found["c"] == "a"


def test_only_what_is_merged_counts():
    one = torch.arange(6.0).view(2, 3)
    state = {"a": one, "b": one.clone()}
    assert find_tied(job_of(state)) == {"b": "a"}
    assert find_tied(job_of(state, only=("b",))) == {}
    whole = {name: tensor.int() for name, tensor in state.items()}
    assert find_tied(job_of(whole)) == {}


def test_every_tensor_is_read_a_bounded_number_of_times():
    """Tensors with equal beginnings, all unlike: the worst case."""
    Counting.reads, count = 0, 200
    state = {}
    for i in range(count):
        state[f"{i}"] = torch.zeros(8, 8)
        state[f"{i}"][-1, -1] = i + 1
    assert find_tied(job_of(state, state)) == {}
    assert Counting.reads <= 3 * count
