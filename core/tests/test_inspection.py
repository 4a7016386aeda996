from __future__ import annotations

import pytest
import torch

import mtk
from mtk.errors import CheckpointError
from mtk.inspection import NOTHING_FOUND, inspect, robust_z
from mtk.loading import Registry

WIDTH = 48


def model(seed: int, base=None, step: float = 0.05):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed.weight": (32, WIDTH),
        "fc.weight": (WIDTH, WIDTH),
        "fc.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
    }
    noise = {
        name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    if base is None:
        return noise
    return {name: base[name] + step * noise[name] for name in shapes}


BASE = model(0)
EXPERTS = [model(seed, BASE) for seed in range(1, 6)]


def look(first, **more):
    return inspect(first, registry=Registry(), **more)


def test_structure_and_an_honest_verdict() -> None:
    seen = look(BASE)
    assert (seen.tensors, seen.kind) == (4, "full")
    assert seen.parameters == sum(tensor.numel() for tensor in BASE.values())
    assert seen.bytes == 4 * seen.parameters
    assert seen.dtypes == {"float32": 4}
    assert seen.roles["linear"] == 1
    assert seen.verdict == NOTHING_FOUND
    for word in ("safe", "clean"):
        assert word not in seen.verdict


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda t: t["fc.weight"].view(-1)[3:5].fill_(float("nan")), "numbers"),
        (lambda t: t["fc.bias"].view(-1)[:1].fill_(float("inf")), "numbers"),
        (lambda t: t["fc.weight"].zero_(), "constant"),
        (lambda t: t.update(again=t["fc.weight"].clone()), "identical"),
    ],
)
def test_odd_numbers_are_named(change, check) -> None:
    tensors = {name: tensor.clone() for name, tensor in BASE.items()}
    change(tensors)
    (finding,) = look(tensors).findings
    assert finding.check == check
    assert "weight" in finding.message or "bias" in finding.message


def test_differences_to_the_base() -> None:
    tuned = dict(EXPERTS[0], **{"norm.weight": BASE["norm.weight"]})
    (difference,) = look(tuned, against=BASE).differences
    tau = torch.cat([(tuned[n] - BASE[n]).flatten() for n in BASE])
    theta = torch.cat([BASE[n].flatten() for n in BASE])
    assert difference.norm == pytest.approx(float(tau.norm() / theta.norm()), rel=1e-5)
    assert difference.unchanged == pytest.approx(WIDTH / tau.numel())
    assert difference.spike == pytest.approx(1, abs=0.15)
    assert difference.cosine is None


def test_clean_experts_give_no_finding() -> None:
    seen = look(EXPERTS[0], against=BASE, others=EXPERTS[1:])
    assert not seen.findings
    assert len(seen.differences) == 5
    assert abs(seen.differences[0].cosine) < 0.1


@pytest.mark.parametrize("factor", [3.0, 0.2])
def test_an_unusual_norm_is_found_on_both_sides(factor: float) -> None:
    odd = model(9, BASE, step=0.05 * factor)
    seen = look(odd, against=BASE, others=EXPERTS)
    assert "norm" in {finding.check for finding in seen.findings}
    assert {finding.model for finding in seen.findings} == {"model"}


def test_a_planted_spike_and_a_planted_row_are_found() -> None:
    spiked = {name: tensor.clone() for name, tensor in model(9, BASE).items()}
    u, v = torch.randn(WIDTH), torch.randn(WIDTH)
    spiked["fc.weight"] += 3 * torch.outer(u / u.norm(), v / v.norm())
    spiked["embed.weight"][7] += 4
    seen = look(spiked, against=BASE, others=EXPERTS)
    checks = {finding.check for finding in seen.findings}
    assert {"spike", "row"} <= checks
    assert seen.differences[0].energy > 0.3


def test_a_copy_is_found() -> None:
    seen = look(EXPERTS[0], against=BASE, others=[EXPERTS[0], *EXPERTS[1:]])
    assert any(finding.check == "direction" for finding in seen.findings)


def test_robust_z_has_a_floor() -> None:
    scores = robust_z([1.0, 1.0, 1.0, 1.0, 1.1])
    assert scores[-1] == pytest.approx(2.0)
    assert robust_z([0.0, 0.0, 0.0]) == [0.0, 0.0, 0.0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CheckpointError, match="--against"):
        look(BASE, others=EXPERTS)
    fewer = {name: tensor for name, tensor in BASE.items() if name != "fc.bias"}
    with pytest.raises(CheckpointError, match=r"fc\.bias"):
        look(fewer, against=BASE)
    other = dict(BASE, **{"fc.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"fc\.bias"):
        look(other, against=BASE)


def test_it_is_part_of_the_python_api() -> None:
    assert mtk.inspect is inspect
