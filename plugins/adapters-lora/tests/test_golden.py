"""The golden cases of lora_combination, computed with the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtk_adapters_lora.combine import combine
from mtk_adapters_lora.formats import load_adapter
from mtk_adapters_lora.klora import choose

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    path.parent.name: json.loads(path.read_text())
    for path in sorted(GOLDEN.glob("lora_combination/*/case.json"))
}
PREFIX = "base_model.model."
COMBINED = [
    name
    for name, case in CASES.items()
    if case["params"]["combination"] not in ("klora", "ziplora")
]


def adapters(case: dict) -> list[Path]:
    return [GOLDEN / Path(*Path(p).parts[-2:]) for p in case["files"]["adapters"]]


def expected(name: str) -> dict:
    return load_file(GOLDEN / "lora_combination" / name / "expected.safetensors")


def close(case: dict, got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=case["rtol"], atol=case["atol"])


def test_all_cases_are_here() -> None:
    assert len(CASES) == 12
    assert len(COMBINED) == 10


@pytest.mark.parametrize("name", COMBINED)
def test_combinations(name: str) -> None:
    case = CASES[name]
    new = combine(adapters(case), **case["params"])
    values, want = case["expected_values"], expected(name)
    assert new.rank == values["rank"]
    deltas = {k.removeprefix("delta."): v for k, v in want.items() if k[0] == "d"}
    assert {f"{module}.weight" for module in new.updates} == set(deltas)
    for weight, delta in deltas.items():
        close(case, new.delta(weight.removesuffix(".weight")), delta)
    for key, factor in want.items():
        if key.startswith("adapter."):
            stem, _, part = key.removeprefix(f"adapter.{PREFIX}").rpartition(".lora_")
            update = new.updates[stem]
            close(case, update.a if part[0] == "A" else update.b, factor)


def test_ziplora_with_given_column_scales() -> None:
    case, want = CASES["official-ziplora"], expected("official-ziplora")
    given = load_file(GOLDEN / "lora_combination/official-ziplora/mergers.safetensors")
    opened = [load_adapter(path) for path in adapters(case)]
    columns = [
        {
            key.removeprefix(PREFIX).removesuffix(f".merger_{i}"): value
            for key, value in given.items()
            if key.endswith(f".merger_{i}")
        }
        for i in (1, 2)
    ]
    # The case leaves alpha / r = 2 out.
    new = combine(opened, [0.5, 0.5], "ziplora", column_scales=columns)
    for module, delta in want.items():
        close(case, new.delta(module.removeprefix(PREFIX)), delta)


def test_klora_chooses_as_the_authors_do() -> None:
    case, want = CASES["official-klora"], expected("official-klora")
    content, style = (load_adapter(path) for path in adapters(case))
    options = {k: v for k, v in case["params"].items() if k != "combination"}
    for key, chosen in case["expected_values"]["chosen"].items():
        module, step, pattern = key.removeprefix(PREFIX).split("|")
        got = choose(content, style, module, int(step[2:]), pattern=pattern, **options)
        assert got == chosen, key
    for name, delta in want.items():
        a, b = content.factors(content.modules[name.removeprefix(PREFIX)])
        close(case, b @ a, delta)
