# ruff: noqa: INP001, S603  a script that runs the commands it names
"""Time and memory of merging files, against mergekit and against reading and writing.

Makes llama-layout bf16 checkpoints of a chosen size (a base and experts), then runs, in
turn: the floor (read the method's inputs with ``cat``, write one model with ``dd``),
``mtk``, and mergekit 0.1.5 in an environment of its own. Prints wall time over the floor,
and CPU time, which other work on the machine disturbs less.

    python benchmarks/merge_speed.py --size 0.2 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MERGEKIT = "mergekit==0.1.5"
# name -> experts, reads the base, arguments of mtk, mergekit's merge_method
CASES = {
    "linear": (3, False, ["-m", "linear"], "linear"),
    "task_arithmetic": (3, True, ["-m", "task_arithmetic"], "task_arithmetic"),
    "slerp": (2, False, ["-m", "slerp"], "slerp"),
    "dare": (3, True, ["-m", "dare"], "dare_linear"),
    "ties_tensor": (3, True, ["-m", "ties", "-p", "threshold_scope=tensor"], "ties"),
    "ties_global": (3, True, ["-m", "ties"], ""),
}
PARAMETERS = {
    "linear": "weight: 1.0",
    "task_arithmetic": "weight: 0.3",
    "dare_linear": "{weight: 0.3, density: 0.5}",
    "ties": "{weight: 1.0, density: 0.2}",
}
FILE = "model.safetensors"


def shapes(size: float) -> dict[str, tuple[int, ...]]:
    """Tensors of a llama of about ``size`` billion parameters."""
    hidden = 1536 if size >= 0.3 else 1024 if size >= 0.15 else 512
    inner, words = hidden * 8 // 3 // 64 * 64, 32000
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    } | {f"self_attn.{x}_proj": (hidden, hidden) for x in "qkvo"}
    each = sum(math.prod(shape) for shape in layer.values())
    table: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (words, hidden),
        "lm_head.weight": (words, hidden),
        "model.norm.weight": (hidden,),
    }
    for number in range(max(1, round((size * 1e9 - 2 * words * hidden) / each))):
        for name, shape in layer.items():
            table[f"model.layers.{number}.{name}.weight"] = shape
    return table


def make(
    folder: Path, table: dict[str, tuple[int, ...]], experts: int, shards: int
) -> None:
    """Write ``base`` and ``e0``, ``e1`` ...; experts are the base plus small noise."""
    import torch

    draw = torch.Generator().manual_seed(0)
    base = {n: 0.02 * torch.randn(s, generator=draw) for n, s in table.items()}
    base = {name: tensor.bfloat16() for name, tensor in base.items()}
    save(folder / "base", base, shards)
    for index in range(experts):
        expert = {
            name: (t.float() + 0.002 * torch.randn(t.shape, generator=draw)).bfloat16()
            for name, t in base.items()
        }
        save(folder / f"e{index}", expert, shards)


def save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """One file, or shards with an index, and the config that mergekit asks for."""
    from safetensors.torch import save_file

    folder.mkdir()
    names, where = sorted(tensors), {}
    for part in range(shards):
        file = (
            FILE if shards == 1 else f"model-{part + 1:05}-of-{shards:05}.safetensors"
        )
        mine = {name: tensors[name] for name in names[part::shards]}
        save_file(mine, folder / file, {"format": "pt"})
        where |= dict.fromkeys(mine, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": where}
        (folder / f"{FILE}.index.json").write_text(json.dumps(index))
    layers = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
    rows, hidden = next(
        (t.shape for n, t in tensors.items() if n == "lm_head.weight"), (8, 8)
    )
    inner = hidden * 8 // 3 // 64 * 64
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, hidden // 64),
        "num_key_value_heads": max(1, hidden // 64),
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def measure(command: list[str], log: Path) -> tuple[float, float, float]:
    """Wall and CPU seconds and peak resident GB of one child, which must succeed."""
    start = time.perf_counter()
    with log.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def models(work: Path, experts: int, *, base: bool) -> list[Path]:
    """The folders a method reads."""
    return [work / f"e{i}" for i in range(experts)] + ([work / "base"] if base else [])


def floor_command(work: Path, experts: int, *, base: bool) -> list[str]:
    """Read every input, write one model."""
    read = [
        str(f)
        for m in models(work, experts, base=base)
        for f in m.glob("*.safetensors")
    ]
    one = " ".join(map(str, (work / "e0").glob("*.safetensors")))
    script = f"cat {' '.join(read)} > /dev/null; cat {one} | dd of={work}/floor bs=1M"
    return ["bash", "-c", script]


def mtk_command(
    work: Path, experts: int, arguments: list[str], *, base: bool
) -> list[str]:
    """The installed command, beside this Python."""
    command = [str(Path(sys.executable).with_name("mtk")), "merge", *arguments]
    for index in range(experts):
        command += ["--expert", str(work / f"e{index}")]
    command += ["--base", str(work / "base")] if base else []
    return [*command, "-o", str(work / "mtk.safetensors"), "--overwrite", "-q"]


def mergekit_command(program: Path, work: Path, experts: int, method: str) -> list[str]:
    """A recipe of its own, and the command that runs it."""
    base = work / ("e0" if method == "slerp" else "base")
    lines = [f"merge_method: {method}", "dtype: bfloat16", "models:"]
    for index in range(experts):
        lines.append(f"  - model: {work}/e{index}")
        if method in PARAMETERS:
            given = PARAMETERS[method]
            lines.append(
                f"    parameters: {given if given[0] == '{' else f'{{{given}}}'}"
            )
    lines += [] if method == "linear" else [f"base_model: {base}"]
    lines += ["parameters: {t: 0.5}"] if method == "slerp" else []
    recipe = work / "recipe.yml"
    recipe.write_text("\n".join(lines) + "\n")
    shutil.rmtree(work / "mergekit", ignore_errors=True)
    return [str(program), str(recipe), str(work / "mergekit"), "--no-copy-tokenizer"]


def install_mergekit(cache: Path) -> Path | None:
    """Its command, installed into ``cache`` on the first run; None where that fails."""
    program = cache / "mergekit" / "bin" / "mergekit-yaml"
    if program.exists():
        return program
    cache.mkdir(parents=True, exist_ok=True)
    constraints = cache / "constraints.txt"
    constraints.write_text("torch==2.13.0\n")
    try:
        subprocess.run([sys.executable, "-m", "venv", cache / "mergekit"], check=True)
        pip = [cache / "mergekit" / "bin" / "pip", "install", "-q", "-c", constraints]
        subprocess.run([*pip, MERGEKIT], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"mergekit is left out, it could not be installed: {error}")
        return None
    return program


def spread(values: list[float]) -> str:
    """Smallest, middle and largest."""
    return f"{min(values):6.2f} {statistics.median(values):6.2f} {max(values):6.2f}"


def compare(work: Path, methods: list[str], rounds: int, mergekit: Path | None) -> None:
    """Floor, mtk and mergekit in turn, for each method."""
    log = work / "log"
    for name in methods:
        experts, base, arguments, other = CASES[name]
        times: dict[str, list[float]] = {"floor": [], "mtk": [], "mergekit": []}
        work_of: dict[str, list[float]] = {"floor": [], "mtk": [], "mergekit": []}
        memory = {"floor": 0.0, "mtk": 0.0, "mergekit": 0.0}
        for _ in range(rounds):
            commands = {
                "floor": floor_command(work, experts, base=base),
                "mtk": mtk_command(work, experts, arguments, base=base),
            }
            if mergekit and other:
                commands["mergekit"] = mergekit_command(mergekit, work, experts, other)
            for who, command in commands.items():
                seconds, cpu, peak = measure(command, log)
                times[who].append(seconds)
                work_of[who].append(cpu)
                memory[who] = max(memory[who], peak)
        middle = statistics.median(times["floor"])
        for who, values in times.items():
            if values:
                ratios = [value / middle for value in values]
                print(
                    f"{name:16} {who:9} seconds {spread(values)}   over floor "
                    f"{spread(ratios)}   CPU {statistics.median(work_of[who]):6.2f} s   "
                    f"peak {memory[who]:.2f} GB",
                    flush=True,
                )


def main() -> None:
    """Read the arguments, make the models, measure, and clean up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=0.55, help="billions of numbers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--many-tensors", type=int, default=0, metavar="N")
    parser.add_argument(
        "--experts", type=int, nargs="*", default=[], help="memory curve"
    )
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument("--work", type=Path, help="folder for the models")
    cache = Path.home() / ".cache" / "mtk-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="for mergekit")
    given = parser.parse_args()
    mergekit = None if given.no_mergekit else install_mergekit(given.cache)
    work = Path(tempfile.mkdtemp(prefix="merge_speed.", dir=given.work))
    try:
        if given.many_tensors:
            table = {f"t{i}.weight": (8, 8) for i in range(given.many_tensors)}
        else:
            table = shapes(given.size)
        count = sum(math.prod(shape) for shape in table.values())
        print(
            f"{len(table)} tensors, {count / 1e9:.3f} billion numbers, min/median/max"
        )
        # In a process of its own: a child's peak counts what its parent held.
        maker = multiprocessing.get_context("spawn").Process(
            target=make, args=(work, table, max([3, *given.experts]), given.shards)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the models could not be made")
        if given.many_tensors:
            mergekit = None  # it knows no architecture of such tensors
        compare(work, given.methods, given.rounds, mergekit)
        for experts in given.experts:
            for name in ("linear", "ties_global"):
                _, base, arguments, _ = CASES[name]
                command = mtk_command(work, experts, arguments, base=base)
                seconds, cpu, peak = measure(command, work / "log")
                print(
                    f"{name:16} {experts:2} experts {seconds:6.2f} s  CPU {cpu:6.2f} s  "
                    f"peak {peak:.2f} GB"
                )
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
