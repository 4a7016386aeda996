"""Results of the authors' code on fixed inputs."""

from __future__ import annotations

import itertools
import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mtk_methods_adaptive.adamerging import merge_with

GOLDEN = Path(__file__).parent / "golden" / "adamerging"
INPUTS = GOLDEN.parent / "_inputs" / "small-a"
LEARNT = ["official-a", "official-a-layer-pp", "official-a-task"]


def same(got, want, case):
    covers = case.get("covers", ["*"])
    assert set(want) == {n for n in got if any(fnmatchcase(n, p) for p in covers)}
    for name, tensor in want.items():
        torch.testing.assert_close(
            got[name].float(), tensor.float(), rtol=case["rtol"], atol=case["atol"]
        )


@pytest.mark.parametrize("name", LEARNT)
def test_given_coefficients(name):
    case = json.loads((GOLDEN / name / "case.json").read_text())
    params = dict(case["params"])
    params.pop("granularity")
    merged = merge_with(
        experts=[load_file(INPUTS / f"expert_{i}.safetensors") for i in range(3)],
        base=load_file(INPUTS / "base.safetensors"),
        coefficients=load_file(GOLDEN / name / "coefficients.safetensors"),
        **params,
    )
    same(merged, load_file(GOLDEN / name / "expected.safetensors"), case)


class FixedTask:
    """Stands in for a LiveTask: the same batches in the same order, for ever."""

    def __init__(self, name, head, batches):
        self.name, self.head, self.fixed = name, head, batches

    def batches(self, size, generator):
        return itertools.cycle(self.fixed)

    def counted(self, inputs):
        return None

    def logits(self, tensors, inputs):
        hidden = torch.tanh(
            nn.functional.linear(inputs, tensors["fc1.weight"], tensors["fc1.bias"])
        )
        features = nn.functional.linear(
            hidden, tensors["fc2.weight"], tensors["fc2.bias"]
        )
        return features @ self.head.T


def test_training(merge):
    folder = GOLDEN / "official-train-layer"
    case = json.loads((folder / "case.json").read_text())
    heads = load_file(folder / "heads.safetensors")
    data = load_file(folder / "data.safetensors")
    tasks = [
        FixedTask(name, heads[name], [data[f"{name}.batch_{i}"] for i in (0, 1)])
        for name in case["setup"]["tasks"]
    ]
    experts = [load_file(folder / file) for file in case["files"]["experts"]]
    base = load_file(folder / "base.safetensors")
    merged = merge("adamerging", experts, base, {"tasks": tasks}, **case["params"])
    want = load_file(folder / "expected.safetensors")
    coefficients = want.pop("coefficients")
    same({f"merged.{n}": t for n, t in merged.tensors.items()}, want, case)
    rows = dict(zip(case["setup"]["coefficient_rows"], coefficients, strict=True))
    again = merge_with(experts=experts, base=base, coefficients=rows)
    same(again, merged.tensors, case)
