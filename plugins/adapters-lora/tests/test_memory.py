"""Memory is a matter of the largest weight and the new factors, not of the layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# The peak of a process's own memory; getrusage would count its parent's as well.
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="reads the peak from Linux"
)
SIDE, FEW, MANY = 768, 3, 30
LAYER = SIDE * SIDE * 4
# Both models, base and expert, grow by this much.
GROWTH = 2 * (MANY - FEW) * LAYER

START = """
import json, re, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)

def peak():
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", text)[1])

def open_file(path):
    from mtk.checkpoint import SafetensorsCheckpoint
    return SafetensorsCheckpoint([Path(path)], str(path))
"""
MAKE = """
for count in (few, many):
    folder = Path(str(count)); folder.mkdir()
    names = [f"l.{i}.weight" for i in range(count)]
    base = {n: torch.randn(side, side) for n in names}
    save_file(base, folder / "base.safetensors")
    a, b = torch.randn(2, side), torch.randn(side, 2)
    save_file({n: t + b @ a for n, t in base.items()}, folder / "tuned.safetensors")
    factors = {}
    for n in names:
        stem = "base_model.model." + n.removesuffix(".weight")
        factors |= {f"{stem}.lora_A.weight": a.clone(), f"{stem}.lora_B.weight": b.clone()}
    (folder / "adapter").mkdir()
    save_file(factors, folder / "adapter/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
"""
EXTRACT = """
from mtk_adapters_lora.extract import extract
peaks = []
for count in (few, many):
    new = extract(open_file(f"{count}/base.safetensors"), open_file(f"{count}/tuned.safetensors"), 2)
    assert len(new.updates) == count and new.relative_error < 0.01
    new.save(f"{count}/new")
    del new
    peaks.append(peak())
print(json.dumps(peaks))
"""
PRODUCTS = """
from mtk_adapters_lora import lora
peaks = []
for count in (few, many):
    opened = lora.open(Path(f"{count}/adapter"), base=open_file(f"{count}/base.safetensors"))
    assert len(opened.changed()) == count
    total = side * side
    for name in opened.names():
        for start in range(0, total, total // 4):
            opened.part(name, start, min(start + total // 4, total))
        opened.read(name)
    peaks.append(peak())
print(json.dumps(peaks))
"""
# Held whole, as a careless reader would: the measurement must see that.
HELD = """
from safetensors.torch import load_file
peaks = []
for count in (few, many):
    held = [load_file(f"{count}/{n}.safetensors") for n in ("base", "tuned")]
    assert sum(float(t.sum()) for d in held for t in d.values())
    peaks.append(peak())
print(json.dumps(peaks))
"""

# Blocks are given back when they are freed: what is held is measured, not the holes that
# the allocator may leave between parts of many sizes. Extraction must leave none itself.
SETTINGS = {PRODUCTS: {"MALLOC_MMAP_THRESHOLD_": "65536"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    folder = tmp_path_factory.mktemp("models")

    def child(code: str) -> str:
        numbers = f"side, few, many = {SIDE}, {FEW}, {MANY}\n"
        done = subprocess.run(
            [sys.executable, "-c", START + numbers + code],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **SETTINGS.get(code, {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    child(MAKE)
    return lambda code: json.loads(child(code))


@pytest.mark.parametrize("code", [EXTRACT, PRODUCTS], ids=["extract", "products"])
def test_more_layers_take_no_more_memory(
    run: Callable[[str], list[int]], code: str
) -> None:
    few, many = run(code)
    assert many - few < GROWTH / 6


def test_the_measurement_sees_models_that_are_held(
    run: Callable[[str], list[int]],
) -> None:
    few, many = run(HELD)
    assert many - few > GROWTH / 2
