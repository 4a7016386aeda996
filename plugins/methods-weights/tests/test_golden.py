"""Results of the authors' codes and of other tools, on fixed inputs.

``golden`` holds copies of the shared cases, reduced in size: expected tensors of the
second layer, which has the shapes of the first, are left out (``covers``). Of emr the
unified vector and the masks, equal in all three cases, are kept in official-a-global
(masks as booleans), and of the task models only number 1.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtk_methods_weights.emr import unpack

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/*/case.json"))
INPUTS = GOLDEN / "_inputs" / "small-a"


def models(case):
    experts = [load_file(INPUTS / f"expert_{i}.safetensors") for i in range(3)]
    chosen = [experts[i] for i in case.get("experts", range(3))]
    return load_file(INPUTS / "base.safetensors"), chosen


def same(got, want, case):
    covers = case.get("covers", ["*"])
    assert set(want) == {n for n in got if any(fnmatchcase(n, p) for p in covers)}
    for name, tensor in want.items():
        torch.testing.assert_close(
            got[name].float(), tensor.float(), rtol=case["rtol"], atol=case["atol"]
        )


@pytest.mark.parametrize(
    "folder", CASES, ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_golden(folder, merge):
    case = json.loads((folder / "case.json").read_text())
    base, experts = models(case)
    masks = case.get("files", {}).get("masks")
    more = {"masks": load_file(folder / masks)} if masks else {}
    merged = merge(case["method"], experts, base, more, **case["params"])
    want = load_file(folder / case["expected"])
    if case["kind"] == "other":
        same(per_task(merged, want), want, case)
    else:
        same(merged.tensors, want, case)


def per_task(merged, want):
    """What a per-task result holds, under the names of the case's file."""
    got = {f"unified.{name}": tensor for name, tensor in merged.tensors.items()}
    for index, codes in enumerate(merged.codes):
        for name, tensor in merged.task(index).items():
            got[f"task.{index}.{name}"] = tensor
            mask = unpack(codes[name]["mask"], tensor.numel())
            got[f"mask.{index}.{name}"] = mask.view(tensor.shape)
    first = next(iter(merged.tensors))
    got["rescalers"] = torch.stack([codes[first]["rescaler"] for codes in merged.codes])
    return {name: got[name] for name in want}


def test_every_method_with_cases_has_them_here():
    found = {path.parent.name for path in CASES}
    assert found == {
        "average", "dare", "emr", "iso_c", "karcher", "linear", "multislerp", "slerp",
        "task_arithmetic", "ties",
    }  # fmt: skip
