"""Recipes from end to end: all of ``docs/reference/recipes.md``, against plain torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mtk
from mtk_cli.main import cli

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "recipes.md"
BLOCK = re.compile(r"```toml\n(.*?)```", re.DOTALL)
EXAMPLES = BLOCK.findall(PAGE.read_text())
LAYERS, WIDTH, WORDS = 4, 8, 12
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "vocab_size": WORDS,
    "torch_dtype": "bfloat16",
}


def llama(seed: int, near: dict[str, torch.Tensor] | None = None, prefix="model."):
    """Weights with the names of a llama; near others, if there are some."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"{prefix}embed_tokens.weight": (WORDS, WIDTH)}
    for layer in range(LAYERS):
        start = f"{prefix}layers.{layer}"
        shapes |= {f"{start}.{name}.weight": (WIDTH, WIDTH) for name in MATRICES}
        shapes[f"{start}.input_layernorm.weight"] = (WIDTH,)
    shapes |= {f"{prefix}norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)}
    state = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    if near is not None:
        state = {n: near[n].float() + 0.1 * t for n, t in state.items()}
    return {name: tensor.bfloat16() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    base = llama(0)
    found = {"base": base}
    found |= {
        name: llama(seed, base) for seed, name in enumerate(("math", "code", "chat"), 1)
    }
    inner = {
        name.replace("model.", "language_model."): tensor
        for name, tensor in base.items()
        if name.startswith("model.")
    }
    found["vision"] = inner | {"visual.conv.weight": torch.randn(4, 3, 2, 2).bfloat16()}
    return found


@pytest.fixture(scope="module")
def lora() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    state = {}
    for layer in range(LAYERS):
        start = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        state[f"{start}.lora_A.weight"] = torch.randn(2, WIDTH, generator=generator)
        state[f"{start}.lora_B.weight"] = torch.randn(WIDTH, 2, generator=generator)
    return state


@pytest.fixture
def folder(tmp_path: Path, states, lora, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models that the page speaks of, in the current folder."""
    for name, state in states.items():
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
        if name != "vision":
            config = CONFIG | {"_name": name}
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "chat" / "generation_config.json").write_text('{"top_k": 7}')
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str | Path, code: int = 0):
    result = CliRunner().invoke(cli, ["merge", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def merged(text: str, out: str = "out", name: str = "recipe.toml"):
    """Merge a recipe in the current folder; the tensors of the result."""
    Path(name).write_text(text)
    run(name, out)
    return tensors(out)


def tensors(out: str | Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(Path(out).glob("*.safetensors")):
        found |= load_file(file)
    return found


def wide(state):
    return {name: tensor.float() for name, tensor in state.items()}


def combine(states, weights):
    """A weighted sum; a weight is a number, or a function of a tensor's name."""
    pick = [w if callable(w) else (lambda _, w=w: w) for w in weights]
    return {
        name: sum(p(name) * s[name].float() for s, p in zip(states, pick, strict=True))
        for name in states[0]
    }


def add(base, experts, weights):
    """Base plus weighted task vectors."""
    pick = [w if callable(w) else (lambda _, w=w: w) for w in weights]
    return {
        name: start.float()
        + sum(
            p(name) * (expert[name].float() - start.float())
            for expert, p in zip(experts, pick, strict=True)
        )
        for name, start in base.items()
    }


def depth(name: str) -> float:
    """From 0 in the first layer to 1 in the last."""
    found = re.search(r"layers\.(\d+)\.", name)
    if found:
        return int(found[1]) / (LAYERS - 1)
    return 0.0 if "embed" in name else 1.0


def trimmed(delta, density, threshold=None):
    if threshold is None:
        threshold = smallest(delta.flatten(), density)
    return torch.where(delta.abs() >= threshold, delta, 0.0)


def smallest(values, density):
    """The magnitude of the last entry that is kept."""
    count = min(int(len(values) * density) + 1, len(values))
    return values.abs().sort(descending=True).values[count - 1]


def elected(kept, majority):
    """Mean of the entries whose sign is that of the sum, or of most sums where it is 0."""
    stacked = torch.stack(kept)
    sign = stacked.sum(0).sign()
    sign = torch.where(sign == 0, majority, sign)
    agree = (stacked.sign() == sign) & (stacked != 0)
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)


def ties(base, experts, density, *, scale=1.0, names=None):
    """TIES; with ``names``, ``density`` is a function of them, and each has thresholds."""
    own = names is not None
    names = list(base if names is None else names)
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for expert in experts:
        deltas = {n: expert[n].float() - base[n].float() for n in names}
        shared = None
        if not own:
            shared = smallest(
                torch.cat([d.flatten() for d in deltas.values()]), density
            )
        for name, delta in deltas.items():
            share = density(name) if own else density
            kept[name].append(trimmed(delta, share, shared))
    sums = torch.cat([sum(tensors).flatten() for tensors in kept.values()])
    majority = sums.sign().sum().sign()
    return {
        name: base[name].float() + scale * elected(tensors, majority)
        for name, tensors in kept.items()
    }


def slerp(one, two, t):
    result = {}
    for name, tensor in one.items():
        a, b = tensor.double().flatten(), two[name].double().flatten()
        angle = torch.arccos((a / a.norm()) @ (b / b.norm()))
        value = (
            torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b
        ) / angle.sin()
        result[name] = value.view(tensor.shape).float()
    return result


def rounded(state):
    return {name: tensor.bfloat16() for name, tensor in state.items()}


def bent(name: str) -> float:
    """0.2 to 0.8 to 0.4."""
    at = depth(name)
    return 0.2 + 1.2 * at if at <= 0.5 else 0.8 - 0.8 * (at - 0.5)


def first(m, _lora):
    return ties(m["base"], [m["math"], m["code"]], 0.3, scale=0.8)


def weighted(m, _lora):
    return combine([m["math"], m["code"]], [0.7, 0.3])


def adapted(m, lora):
    other = wide(m["code"])
    for layer in range(LAYERS):
        start = f"model.layers.{layer}.self_attn.q_proj"
        key = f"base_model.model.{start}"
        product = lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"]
        other[f"{start}.weight"] = other[f"{start}.weight"] + 2.0 * product
    return combine([m["math"], other], [0.5, 0.5])


def renamed(m, _lora):
    result = wide(m["vision"])
    for name in m["math"]:
        inner = name.replace("model.", "language_model.")
        if name.startswith("model."):
            result[inner] = (result[inner] + m["math"][name].float()) / 2
    return result


def graded(m, _lora):
    return add(
        m["base"],
        [m["math"], m["code"]],
        [bent, lambda name: bent(name) * depth(name)],
    )


def chosen(m, _lora):
    return combine(
        [m["math"], m["code"]],
        [
            lambda name: depth(name) if ".mlp." in name else 0.5,
            lambda name: 1 - depth(name) if ".mlp." in name else 0.5,
        ],
    )


def ruled(m, _lora):
    pair = [m["math"], m["code"]]
    result = combine(pair, [2 / 3, 1 / 3])
    linear = ("norm", "lm_head", "embed")
    rest = [name for name in result if not any(word in name for word in linear)]
    density = lambda name: 0.5 if ".self_attn." in name else 0.3  # noqa: E731
    return result | ties(m["base"], pair, density, names=rest)


def stacked(m, _lora):
    math, code = wide(m["math"]), wide(m["code"])
    result = {
        "model.embed_tokens.weight": math["model.embed_tokens.weight"],
        "model.norm.weight": code["model.norm.weight"],
        "lm_head.weight": code["lm_head.weight"],
    }
    for name in math:
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
        if not found:
            continue
        layer, rest = int(found[1]), found[2]
        if layer < 3:
            result[name] = math[name]
        if 1 <= layer < 3:
            above = code[f"model.layers.{layer + 1}.{rest}"]
            mixed = 0.25 * math[name] + 0.75 * above
            result[f"model.layers.{layer + 2}.{rest}"] = mixed
        if layer == 3:
            result[f"model.layers.5.{rest}"] = code[name]
    return result


def skilled(m, _lora):
    skills = rounded(add(m["base"], [m["math"], m["code"]], [0.5, 0.5]))
    return slerp(skills, m["chat"], 0.4)


def exact(m, _lora):
    skills = ties(m["base"], [m["math"], m["code"]], 0.2)
    return combine([skills, m["chat"]], [0.5, 0.5])


def donated(m, _lora):
    return combine([m["math"], m["chat"]], [0.5, 0.5])


REFERENCES = [
    first,
    weighted,
    adapted,
    renamed,
    graded,
    chosen,
    ruled,
    stacked,
    skilled,
    exact,
    donated,
]
PAIRS = list(zip(EXAMPLES, REFERENCES, strict=True))
NAMES = [reference.__name__ for reference in REFERENCES]


@pytest.mark.parametrize(("text", "reference"), PAIRS, ids=NAMES)
def test_what_the_page_shows_gives_what_the_formulas_say(
    folder: Path, states, lora, text: str, reference
) -> None:
    found, expected = merged(text), reference(states, lora)
    assert set(found) == set(expected)
    dtype = torch.float16 if reference is donated else torch.bfloat16
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        # One rounding at the end, and float32 before.
        torch.testing.assert_close(
            tensor.float(), expected[name].to(dtype).float(), rtol=8e-3, atol=1e-6
        )
        equal = tensor == expected[name].to(dtype)
        assert equal.float().mean() > 0.95, name


@pytest.mark.parametrize("text", EXAMPLES, ids=NAMES)
def test_the_recipe_of_the_card_gives_the_same_bytes(folder: Path, text: str) -> None:
    merged(text)
    shown = BLOCK.search(Path("out/README.md").read_text())
    assert shown
    merged(shown[1], "again", "again.toml")
    files = sorted(file.name for file in Path("out").glob("*.safetensors*"))
    assert files
    for name in files:
        assert Path("out", name).read_bytes() == Path("again", name).read_bytes()
    manifests = [
        json.loads(Path(out, "manifest.json").read_text()) for out in ("out", "again")
    ]
    assert manifests[0]["recipe"] == shown[1] == manifests[1]["recipe"]


@pytest.mark.parametrize("text", EXAMPLES, ids=NAMES)
def test_a_dry_run_of_every_example_expects_what_is_written(
    folder: Path, text: str
) -> None:
    Path("recipe.toml").write_text(text)
    before = set(folder.rglob("*"))
    planned = json.loads(run("recipe.toml", "--dry-run", "--json").stdout)
    assert set(folder.rglob("*")) == before
    run("recipe.toml", "out")
    found = tensors("out")
    assert planned["disk"] == sum(t.nbytes for t in found.values())
    assert planned["tensors"] == len(found)
    assert planned["mismatches"] == []


def test_stages_are_merges_one_after_the_other(folder: Path) -> None:
    """Bit for bit, for every method that looks at the model first, or at whole tensors."""
    inner = 'method = "ties"\nbase = "base"\nexperts = ["math", "code"]\n'
    for method in ("linear", "slerp", "karcher"):
        outer = f'method = "{method}"\nexperts = ["skills", "chat"]\n'
        fused = merged(f'{outer}[[stage]]\nname = "skills"\n{inner}', f"fused_{method}")
        if not Path("skills").exists():
            merged(inner, "skills")
        apart = merged(outer, f"apart_{method}")
        assert all(torch.equal(fused[name], apart[name]) for name in apart)
    task = 'method = "ties"\nbase = "skills"\nexperts = ["chat", "math"]\n'
    apart = merged(task, "apart")
    fused = merged(f'{task}[[stage]]\nname = "skills"\n{inner}', "fused")
    assert all(torch.equal(fused[name], apart[name]) for name in apart)


def test_a_stage_that_stacks_layers_changes_the_config(folder: Path) -> None:
    text = """
        method = "linear"
        experts = ["tall"]
        [[stage]]
        name = "tall"
        method = "linear"
        [[stage.stack]]
        experts = ["math"]
        layers = [0, 3]
        [[stage.stack]]
        experts = ["code"]
        layers = [1, 4]
    """
    found = merged(text)
    config = json.loads(Path("out/config.json").read_text())
    assert config["num_hidden_layers"] == 6
    assert config["_name"] == "math"
    assert "model.layers.5.mlp.up_proj.weight" in found
    assert "come from `math`" in Path("out/README.md").read_text()


def test_the_dtype_of_a_stage_reaches_the_config(folder: Path) -> None:
    text = 'method = "linear"\nexperts = ["wide"]\n[[stage]]\nname = "wide"\n'
    found = merged(
        f'{text}method = "linear"\nexperts = ["math", "code"]\ndtype = "float32"'
    )
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    config = json.loads(Path("out/config.json").read_text())
    assert {config.get("torch_dtype"), config.get("dtype")} <= {"float32", None}


def test_one_adapter_on_two_models_is_two_models(folder: Path, states, lora) -> None:
    found = merged(
        'method = "linear"\n'
        'experts = [{ path = "math", adapter = "lora" }, { path = "code", adapter = "lora" }]'
    )
    name = "model.layers.1.self_attn.q_proj"
    key = f"base_model.model.{name}"
    product = 2 * lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"]
    name += ".weight"
    mean = (states["math"][name].float() + states["code"][name].float()) / 2
    torch.testing.assert_close(found[name], (mean + product).bfloat16())


def test_config_dtype_and_layers_follow(folder: Path) -> None:
    merged(EXAMPLES[NAMES.index("stacked")], "tall")
    assert json.loads(Path("tall/config.json").read_text())["num_hidden_layers"] == 6
    merged(EXAMPLES[NAMES.index("donated")], "half")
    config = json.loads(Path("half/config.json").read_text())
    assert {config.get("torch_dtype"), config.get("dtype")} <= {"float16", None}
    assert config["_name"] == "chat"
    assert json.loads(Path("half/generation_config.json").read_text()) == {"top_k": 7}


def test_shards_are_as_small_as_asked(folder: Path) -> None:
    found = merged(EXAMPLES[NAMES.index("donated")].replace("2GB", "500B"))
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert not Path("out/model.safetensors").exists()
    for file in files:
        assert sum(t.nbytes for t in load_file(Path("out", file)).values()) <= 500
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert set(index["weight_map"]) == set(found)


def test_the_donor_is_said_everywhere(folder: Path) -> None:
    text = EXAMPLES[NAMES.index("donated")]
    Path("recipe.toml").write_text(text)
    assert re.search(r"config from: +chat\n", run("recipe.toml", "--dry-run").output)
    assert "config and tokenizer of chat" in run("recipe.toml", "out").output
    assert "come from `chat`" in Path("out/README.md").read_text()
    assert json.loads(Path("out/manifest.json").read_text())["donor"] == "chat"


def test_the_manifest_is_true(folder: Path) -> None:
    merged(EXAMPLES[NAMES.index("skilled")])
    manifest = json.loads(Path("out/manifest.json").read_text())
    inputs = {item["name"]: item["files"] for item in manifest["inputs"]}
    assert set(inputs) == {"base", "math", "code", "chat"}
    for name, files in inputs.items():
        assert "model.safetensors" in files
        for file, entry in files.items():
            check(Path(name, file), entry)
    written = {p.name for p in Path("out").iterdir()} - {"manifest.json"}
    assert set(manifest["outputs"]) == written
    for file, entry in manifest["outputs"].items():
        check(Path("out", file), entry)
    (job,) = manifest["merge"]
    assert (job["method"], job["params"]["t"]) == ("slerp", 0.4)
    assert manifest["mtk"] == mtk.__version__
    assert {"torch", "mtk-core", "mtk-methods-weights"} <= set(manifest["versions"])


def check(file: Path, entry) -> None:
    data = file.read_bytes()
    assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_mismatches_are_listed_once_though_two_methods_share_the_models(
    folder: Path, states
) -> None:
    odd = dict(states["code"])
    odd["model.norm.weight"] = torch.ones(3).bfloat16()
    odd["model.layers.0.mlp.up_proj.weight"] = torch.ones(3, 3).bfloat16()
    odd["extra.weight"] = torch.ones(3).bfloat16()
    save_file(odd, "code/model.safetensors")
    Path("recipe.toml").write_text(EXAMPLES[NAMES.index("ruled")])
    result = run("recipe.toml", "out", "--dry-run", code=2)
    lines = [x for x in result.stdout.splitlines() if x.startswith("mismatch:")]
    assert len(lines) == 3
    for name in ("norm.weight", "layers.0.mlp.up_proj.weight", "extra.weight"):
        assert sum(name in line for line in lines) == 1
    assert not Path("out").exists()


def test_what_is_decided_for_each_tensor_may_differ_between_them(
    folder: Path, states
) -> None:
    """slerp looks at each tensor before it merges it; rows here, whole ones there."""
    found = merged(
        'method = "slerp"\nexperts = ["math", "code"]\n'
        '[[rule]]\nmatch = "*.mlp.*"\nparams = { scope = "row", t = 0.3 }'
    )
    whole = slerp(states["math"], states["code"], 0.5)
    for name, tensor in found.items():
        expected = whole[name]
        if ".mlp." in name:
            pairs = zip(states["math"][name], states["code"][name], strict=True)
            rows = [slerp({"r": a}, {"r": b}, 0.3)["r"] for a, b in pairs]
            expected = torch.stack(rows)
        torch.testing.assert_close(tensor, expected.bfloat16(), rtol=8e-3, atol=1e-6)


def test_a_shared_result_names_no_folder_of_this_machine(folder: Path, states) -> None:
    """And two models of one name stay two."""
    from mtk.merging import prepare
    from mtk.provenance import public
    from mtk.recipe_toml import dump

    for place, model in (("one", "math"), ("two", "code")):
        (folder / place).mkdir()
        (folder / model).rename(folder / place / "model")
    slabs = "".join(
        f'[[stack]]\nlayers = [{start}, {start + 2}]\nexperts = [{{ path = "{model}", '
        f'adapter = "{folder}/lora" }}]\n'
        for start, model in ((0, f"{folder}/one/model"), (2, f"{folder}/two/model"))
    )
    text = f'method = "linear"\ndonor = "{folder}/chat"\n{slabs}'
    Path("recipe.toml").write_text(text)
    plan = public(prepare(Path("recipe.toml")))
    shown = dump(plan.recipe)
    assert str(folder) not in shown
    assert re.findall(r'path = "(.*?)"', shown) == ["one/model", "two/model"]
    assert plan.donor == "chat"
    names = [item.name for item in plan.inputs.values()]
    assert sorted(names) == ["chat", "lora", "one/model", "two/model"]


@pytest.mark.parametrize("key", ["donor", "tokenizer"])
def test_the_donor_is_an_input_too(folder: Path, key: str) -> None:
    run("-m", "linear", "--expert", "math", "--expert", "code", "-o", "chat2")
    before = {p: p.read_bytes() for p in Path("chat2").iterdir()}
    result = CliRunner().invoke(
        cli, ["merge", "--method", "linear", "--expert", "math", "--expert", "code",
              f"--{key}", "chat2", "-o", "chat2", "--overwrite"],
    )  # fmt: skip
    assert result.exit_code == 2
    assert "chat2" in result.stderr
    assert {p: p.read_bytes() for p in Path("chat2").iterdir()} == before


def test_from_python_on_paths_states_and_checkpoints(folder: Path, states) -> None:
    from mtk.checkpoint import StateDict

    result = mtk.merge(
        "linear",
        experts=["math", states["code"], StateDict(states["chat"], "chat")],
        params={"weights": [2, 1, 1]},
        output="out",
    )
    assert result.path == Path("out")
    expected = combine([states[n] for n in ("math", "code", "chat")], [0.5, 0.25, 0.25])
    for name, tensor in tensors("out").items():
        torch.testing.assert_close(
            tensor, expected[name].bfloat16(), rtol=8e-3, atol=1e-6
        )
    card = Path("out/README.md").read_text()
    assert "| `expert 1` | 0 | `in memory` |" in card
    assert Path("out/config.json").exists()
    kept = mtk.merge("linear", experts=[states["math"], states["code"]])
    assert kept.path is None
    assert set(kept.tensors) == set(states["math"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            (
                'method = "ties"\nbase = "base"\nexperts = ["math"]\n[params]\n'
                "density = { gradient = [0.1, 0.5] }"
            ),
            "threshold_scope=tensor",
        ),
        (
            'method = "linear"\nexperts = ["math", "code"]\nparams.weights = [1, -1]',
            "sum to 0",
        ),
        ('method = "slerp"\nexperts = ["math"]', "takes 2 experts, not 1"),
        ('method = "slerp"\nexperts = ["math", "code"]\nparams.t = 2', "<= 1"),
        ('method = "linear"\nexperts = ["math", "vision"]', "is in"),
        (
            'method = "fisher"\nexperts = ["math", "code"]',
            "needs the statistic 'fisher'",
        ),
        ('method = "emr"\nbase = "base"\nexperts = ["math"]', "per-task result"),
        (
            (
                'method = "linear"\nexperts = ["s"]\n[[stage]]\nname = "s"\nmethod = "emr"\n'
                'base = "base"\nexperts = ["math"]'
            ),
            "cannot be an earlier stage",
        ),
        (
            'method = "linear"\nexperts = ["math"]\ndonor = "nowhere"',
            "nowhere",
        ),
    ],
)
def test_refusals_leave_nothing_behind(folder: Path, text: str, words: str) -> None:
    Path("recipe.toml").write_text(text)
    before = set(folder.rglob("*"))
    result = run("recipe.toml", "out", code=2)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) <= 4  # with "opening the models"
    assert set(folder.rglob("*")) == before
