"""Recipes from strangers: each works or is refused in three lines, in bounded memory and time.

Good recipes are mutated at random, by a seed: as text, and value by value. All run in one
child process under an address-space limit, through the command line (``--dry-run``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

CHILD = """
import copy, json, random, resource, signal, socket, sys, time, tomllib
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
signal.alarm(300)
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = refuse
import tomli_w, torch, yaml
from click.testing import CliRunner
from mtk_cli.main import cli
torch.set_num_threads(1)
path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
text = open(path).read()
toml = path.endswith(".toml")
tree = tomllib.loads(text) if toml else list(yaml.safe_load_all(text))
draw = random.Random(seed)
ODD = [[], {}, "", "x", "..", "/", "a\\0b", "base", "union", -1, 0, 1, 3, 1e308, -0.0, 2**70, True, False,
       [[]], [{}], [1, 2], {"a": 1}, ["x"], "ties", "slerp", "e0", float("nan"), float("inf"), "\\U0001f600",
       {"gradient": []}, {"gradient": [0, 1]}, {"choice": {"*": 1}}, {"choice": {"[": []}}, [0, 1], "5GB", "*"]
if not toml:
    ODD += [None, {"value": 1, "filter": "mlp"}, [{"value": 1}], [{"filter": "a"}, 0.5]]
def places(value, found):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            places(inner, found)
    return found
def changed_tree():
    new = copy.deepcopy(tree)
    for _ in range(draw.randint(1, 2)):
        all_ = places(new, [])
        if not all_:
            break
        where, key = draw.choice(all_)
        kind = draw.randrange(4)
        if kind == 0:
            where[key] = copy.deepcopy(draw.choice(ODD))
        elif kind == 1:
            del where[key]
        elif kind == 2:
            other, name = draw.choice(all_)
            try:
                where[key] = copy.deepcopy(other[name])
            except (KeyError, IndexError):
                where[key] = []
        elif isinstance(where, dict):
            where[draw.choice(["method", "params", "experts", "layers", "x", "weight", "rule", "stage", "dtype"])] = where.pop(key)
        else:
            where.append(copy.deepcopy(where[key]))
    return tomli_w.dumps(new) if toml else yaml.safe_dump_all(new, sort_keys=False, allow_unicode=True)
def changed_text():
    new = bytearray(text.encode())
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(new))
        end = start + draw.choice([0, 1, 1, 5, 40])
        put = draw.choice([b"", bytes([draw.randrange(256)]), bytes(new[start - 20:start]), b"[", b"]", b"*a", b"&a ", b"9" * 30, b"'", b'"', b"\\n", b": "])
        new[start:end] = put
    return bytes(new)
for number in range(count):
    made = changed_tree() if number % 2 else changed_text()
    made = made if isinstance(made, bytes) else made.encode("utf-8", "surrogatepass")
    with open("changed" + path[path.rindex("."):], "wb") as file:
        file.write(made)
    start = time.monotonic()
    outcome = CliRunner().invoke(cli, ["merge", file.name, "--dry-run"])
    print(json.dumps([int(outcome.exit_code), outcome.stderr, repr(made), time.monotonic() - start]), flush=True)
"""

TOML = """
method = "ties"
base = "base"
experts = [
    {path = "e0", weight = 0.5},
    {path = "e1", weight = {gradient = [0.0, 0.5, 1.0]}},
]
only = ["model.*", "lm_head.*"]
dtype = "float32"
donor = "base"
tokenizer = "donor"
vocabulary = "refuse"
shard_size = "5GB"

[params]
density = 0.3
threshold_scope = "tensor"
scale = {choice = {"*mlp*" = 0.5, "*" = 1.0}}

[[rule]]
match = "*norm*"
method = "average"

[[rule]]
match = ["*mlp*"]
params = {density = 0.9}
"""
STACKED = """
method = "linear"
donor = "e0"

[[stage]]
name = "first"
method = "average"
experts = ["e0", "e1"]

[[stack]]
experts = [{path = "first", layers = [0, 1]}]

[[stack]]
experts = [{path = "e0"}, {path = "e1"}]
layers = [0, 2]
base = "base"
method = "slerp"
params = {t = 0.3}
"""
MODELS = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: e0
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: e1
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
parameters:
  normalize: true
  int8_mask: true
dtype: float32
tokenizer_source: base
"""
SLICES = """
slices:
  - sources:
      - model: e0
        layer_range: [0, 2]
      - model: e1
        layer_range: [0, 2]
merge_method: slerp
base_model: e0
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""
DOCUMENTS = """
name: first
merge_method: linear
models: &models
  - model: e0
    parameters: {weight: 1.0}
  - model: e1
    parameters: {weight: 0.5}
---
merge_method: linear
models:
  - model: first
    parameters: {weight: 1.0}
  - model: e1
    parameters: {weight: 0.3}
out_dtype: float16
"""
GOOD = {
    "plain.toml": TOML, "stack.toml": STACKED, "models.yml": MODELS, "slices.yml": SLICES,
    "documents.yml": DOCUMENTS,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    for seed, name in enumerate(("base", "e0", "e1")):
        draw = torch.Generator().manual_seed(seed)
        shapes = {
            "model.embed_tokens.weight": (4, 3),
            "lm_head.weight": (4, 3),
            "model.norm.weight": (3,),
        }
        for layer in (0, 1):
            start = f"model.layers.{layer}"
            shapes |= {
                f"{start}.mlp.up_proj.weight": (5, 3),
                f"{start}.self_attn.q_proj.weight": (3, 3),
                f"{start}.input_layernorm.weight": (3,),
            }
        (root / name).mkdir()
        save_file(
            {n: torch.randn(s, generator=draw) for n, s in shapes.items()},
            root / name / "model.safetensors",
        )
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 4,
            "num_hidden_layers": 2,
        }
        (root / name / "config.json").write_text(json.dumps(config))
        tokenizer = {
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}}
        }
        (root / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, text in GOOD.items():
        (root / name).write_text(text)
    return root


def run(place: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=place, capture_output=True, text=True,
        check=False, timeout=350,
    )  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_the_recipe_is_good_as_it_stands(place: Path, name: str) -> None:
    done = run(place, "-m", "mtk_cli", "merge", name, "out-" + name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", GOOD)
def test_mutated_recipes_work_or_are_refused(place: Path, name: str) -> None:
    done = run(place, "-W", "error", "-c", CHILD, name, 0, 250)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 250, done.stderr[-2000:]
    bad = [
        (code, err, made[:3000])
        for code, err, made, seconds in reports
        if code not in (0, 2)
        or len(err.splitlines()) > 3
        or "Traceback" in err
        or seconds > 10
    ]
    assert not bad, f"{len(bad)} of 250; the first: {bad[0]}"
    worked = sum(code == 0 for code, *_ in reports)
    assert 5 < worked < 245


WHOLE = """
import json, resource, signal, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
signal.alarm(100)
from click.testing import CliRunner
from mtk_cli.main import cli
for name in sys.argv[1:]:
    start = time.monotonic()
    outcome = CliRunner().invoke(cli, ["merge", name, "--dry-run"])
    print(json.dumps([name, int(outcome.exit_code), outcome.stderr, time.monotonic() - start]))
"""


def test_recipes_that_are_too_much(place: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n"
        for i in range(9)
    )
    made = {
        "good.toml": TOML,
        "good.yml": MODELS,
        "large.toml": "x = 1\n" + "# " + "a" * 2_000_000,
        "large.yml": "x: 1\n" + "# " + "a" * 2_000_000,
        "deep-lists.toml": "experts = " + "[" * 50_000 + "]" * 50_000,
        "deep-tables.toml": "a = " + "{a = " * 50_000 + "1" + "}" * 50_000,
        "deep-keys.toml": ".".join(["a"] * 100_000) + " = 1",
        "deep-headers.toml": "[" + ".".join(["a"] * 50_000) + "]\nb = 1\n" + "[" + ".".join(["a"] * 50_000) + ".c]",
        "long-number.toml": "method = " + "9" * 100_000,
        "long-key.toml": "x" * 300_000 + " = 1",
        "many-keys.toml": "\n".join(f"x{i} = 1" for i in range(50_000)),
        "binary.toml": "method = '\0'",
        "deep-lists.yml": "models: " + "[" * 50_000,
        "deep-maps.yml": "{a: " * 50_000,
        "deep-dashes.yml": "- " * 50_000 + "x",
        "bomb.yml": bomb + "models: *j\n",
        "merge-bomb.yml": "a: &a {x: 1}\n" + "".join(f"b{i}: &a {{<<: [*a, *a], y{i}: 1}}\n" for i in range(2000)),
        "self.yml": "models: &a [*a]",
        "tag.yml": "merge_method: !!python/object/apply:os.system [echo]",
        "tag-2.yml": "merge_method: !!binary aGk=",
        "tag-3.yml": "!!python/name:os.system",
        "long-number.yml": "merge_method: " + "9" * 100_000,
        "sexagesimal.yml": "merge_method: " + ":".join(["59"] * 20_000),
        "long-key.yml": "x" * 300_000 + ": 1",
        "many-keys.yml": "\n".join(f"x{i}: 1" for i in range(50_000)),
        "many-documents.yml": "---\na: 1\n" * 50_000,
        "many-stages.toml": TOML + '[[stage]]\nname = "a"\nmethod = "average"\nexperts = ["e0", "e1"]\n' * 3000,
        "stage-chain.toml": 'method = "average"\nexperts = ["s900", "e0"]\n' + "".join(
            f'[[stage]]\nname = "s{i}"\nmethod = "average"\nexperts = ["{f"s{i - 1}" if i else "e1"}", "e0"]\n' for i in range(901)),
        "stage-fan.toml": 'method = "average"\nexperts = ["s40", "s40"]\n' + "".join(
            f'[[stage]]\nname = "s{i}"\nmethod = "average"\nexperts = {json.dumps([f"s{i - 1}"] * 2 if i else ["e0", "e1"])}\n' for i in range(41)),
        "many-experts.toml": f'method = "average"\nexperts = {json.dumps(["e0"] * 5_000)}',
        "regex.toml": f'method = "average"\nexperts = ["e0", "e1"]\nonly = ["{"*a" * 3000}"]',
        "huge-stack.toml": 'method = "linear"\n' + '[[stack]]\nexperts = ["e0"]\nlayers = [0, 2]\n' * 5000,
        "huge-layers.toml": 'method = "linear"\n[[stack]]\nexperts = ["e0"]\nlayers = [0, 9000000000000]\n',
    }  # fmt: skip
    for name, text in made.items():
        (place / name).write_bytes(text.encode())
    done = run(place, "-c", WHOLE, *made)
    reports = {n: rest for n, *rest in map(json.loads, done.stdout.splitlines())}
    missing = [name for name in made if name not in reports]
    assert not missing, (missing[0], done.returncode, done.stderr[-2000:])
    wrong = {
        name: (code, err[:300], seconds)
        for name, (code, err, seconds) in reports.items()
        if code not in ((0,) if name.startswith("good") else (0, 2))
        or len(err.splitlines()) > 3
        or seconds > 20
    }
    assert not wrong
    for name in (
        "large.toml",
        "large.yml",
        "bomb.yml",
        "self.yml",
        "tag.yml",
        "deep-lists.toml",
        "deep-lists.yml",
    ):
        assert reports[name][0] == 2, name
