"""Results of the authors' codes and of other tools, on fixed inputs."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mtk import LiveTask
from mtk.statistics import fisher

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/*/case.json"))
INPUTS = GOLDEN / "_inputs" / "small-a"


def load_case(folder):
    return json.loads((folder / "case.json").read_text())


def same(got, want, case):
    covers = case.get("covers", ["*"])
    assert set(want) == {n for n in got if any(fnmatchcase(n, p) for p in covers)}
    for name, tensor in want.items():
        torch.testing.assert_close(
            got[name].float(), tensor.float(), rtol=case["rtol"], atol=case["atol"]
        )


@pytest.mark.parametrize(
    "folder",
    [folder for folder in CASES if load_case(folder)["kind"] == "merge"],
    ids=lambda path: f"{path.parent.name}-{path.name}",
)
def test_merge(folder, merge):
    case = load_case(folder)
    files = case["files"]["statistics"]
    merged = merge(
        case["method"],
        [load_file(INPUTS / f"expert_{i}.safetensors") for i in range(3)],
        more={"statistics": [load_file(folder / file) for file in files]},
        **case["params"],
    )
    same(merged.tensors, load_file(folder / case["expected"]), case)


def test_exact_estimator():
    folder = GOLDEN / "fisher" / "official-estimate"
    given = load_file(folder / "model.safetensors")
    inputs = given.pop("x")

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            for name, tensor in given.items():
                self.register_parameter(name, nn.Parameter(tensor))

        def forward(self, x):
            return torch.tanh(x @ self.W1 + self.b1) @ self.W2 + self.b2

    task = LiveTask(
        name="t", module=Network(), forward=lambda m, x: m(x), inputs=inputs
    )
    got = fisher(task, given, torch.arange(len(inputs)), estimator="exact")
    same(got, load_file(folder / "expected.safetensors"), load_case(folder))


def test_every_method_with_cases_has_them_here():
    assert {path.parent.name for path in CASES} == {"fisher", "regmean"}
