"""``mtk merge-lora`` and ``mtk extract-lora``, against dense computations."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mtk_cli.main import cli

SHAPES = {"m.q": (6, 8), "m.k": (8, 8), "m.v": (5, 8)}
RANKS, ALPHAS = (2, 3), (4.0, 1.5)
PREFIX = "base_model.model."


def factors(seed, rank, modules):
    torch.manual_seed(seed)
    tensors = {}
    for name in modules:
        out, width = SHAPES[name]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(rank, width)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(out, rank)
    return tensors


def write_adapter(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "/nowhere", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A base, a fine-tune, and two adapters of unequal ranks, in the current folder."""
    pytest.importorskip("mtk_adapters_lora")
    pytest.importorskip("mtk_adapters_full")
    monkeypatch.delenv("MTK_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(9)
    base = {f"{name}.weight": torch.randn(shape) for name, shape in SHAPES.items()}
    base["norm.weight"] = torch.ones(8)
    save_file(base, "base.safetensors")
    for i, modules in enumerate((list(SHAPES), ["m.q", "m.k"])):
        tensors = factors(i, RANKS[i], modules)
        write_adapter(tmp_path / f"a{i}", tensors, r=RANKS[i], lora_alpha=ALPHAS[i])
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for name in ("m.q", "m.v"):
        tuned[f"{name}.weight"] += delta(tmp_path / "a0", name)
    tuned["norm.weight"] += 0.5
    save_file(tuned, "tuned.safetensors")
    return tmp_path


def run(*args):
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def delta(folder, module):
    """The update that an adapter's files mean, by the definition of LoRA."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    a = tensors.get(f"{PREFIX}{module}.lora_A.weight")
    if a is None:
        return torch.zeros(SHAPES[module])
    rank = config.get("rank_pattern", {}).get(module, config["r"])
    alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
    assert len(a) == rank
    return alpha / rank * tensors[f"{PREFIX}{module}.lora_B.weight"] @ a


TWO = ("merge-lora", "--adapter", "a0", "--adapter", "a1")


def test_the_default_is_the_exact_weighted_sum(work):
    done = run(*TWO, "--weight", 0.7, "--weight", -0.2, "-o", "out")
    assert done.exit_code == 0, done.stderr
    for name in SHAPES:
        want = 0.7 * delta(work / "a0", name) - 0.2 * delta(work / "a1", name)
        torch.testing.assert_close(delta(work / "out", name), want)
    assert "3 modules of rank 2 to 5" in done.stdout
    assert "0.000%" in done.stdout


def test_a_rank_gives_the_nearest_and_the_error_is_reported(work):
    done = run(*TWO, "--rank", 2, "-o", "out", "--json")
    report = json.loads(done.stdout)
    lost = norm = 0.0
    for name in SHAPES:
        want = delta(work / "a0", name) + delta(work / "a1", name)
        u, s, vh = torch.linalg.svd(want)
        best = u[:, :2] * s[:2] @ vh[:2]
        torch.testing.assert_close(
            delta(work / "out", name), best, rtol=1e-4, atol=1e-5
        )
        lost, norm = lost + float((s[2:] ** 2).sum()), norm + float((s**2).sum())
        error = float(s[2:].norm() / s.norm())
        assert report["modules"][name]["relative_error"] == pytest.approx(
            error, rel=1e-3, abs=1e-6
        )
    assert report["relative_error"] == pytest.approx((lost / norm) ** 0.5, rel=1e-4)
    assert report["bytes"] == (work / "out/adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--rank", 4),
        ("--rank", 99),
        ("--combination", "svd"),
        ("--combination", "svd", "--rank", 99),
        ("--combination", "ties_svd", "--rank", 7),
        ("--combination", "dare_linear_svd", "--density", 0.5),
    ],
)
def test_a_dry_run_says_what_would_be_and_writes_nothing(work, options):
    before = sorted(path.name for path in work.iterdir())
    done = run(*TWO, *options, "-o", "out", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert sorted(path.name for path in work.iterdir()) == before
    real = json.loads(run(*TWO, *options, "-o", "out", "--json").stdout)
    assert plan["dry_run"] is True
    assert plan["modules"] == len(real["modules"]) == 3
    assert plan["ranks"] == sorted({m["rank"] for m in real["modules"].values()})
    assert 0 < real["bytes"] - plan["bytes"] < 1000  # the file's header
    text = run(*TWO, *options, "--dry-run")
    assert "modules:      3" in text.stdout


def test_quiet_overwrite_and_dtype(work):
    first = run(*TWO, "-o", "out", "-q", "--dtype", "bfloat16")
    assert (first.exit_code, first.stdout, first.stderr) == (0, "", "")
    stored = load_file(work / "out/adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    again = run(*TWO, "-o", "out")
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert run(*TWO, "-o", "out", "--overwrite").exit_code == 0
    stored = load_file(work / "out/adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert "cat" in (work / "out/README.md").read_text()


def test_seeds_of_dare(work):
    given = [*TWO, "--combination", "dare-ties-svd", "--density", 0.5]
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert run(*given, "--seed", seed, "-o", name).exit_code == 0
    one, two, three = (delta(work / n, "m.q") for n in ("one", "two", "three"))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_kohya_and_peft_are_combined_by_the_names_of_the_base(work):
    a, b = torch.randn(2, 8), torch.randn(6, 2)
    kohya = {"lora_unet_m_q.lora_down.weight": a, "lora_unet_m_q.lora_up.weight": b}
    save_file(kohya, "k.safetensors")
    given = ("merge-lora", "--adapter", "k.safetensors", "--adapter", "a1", "-o", "out")
    done = run(*given)
    assert done.exit_code == 2
    assert "--base" in done.stderr
    assert run(*given, "--base", "base.safetensors").exit_code == 0
    stored = load_file(work / "out/pytorch_lora_weights.safetensors")
    names = {name.split(".lora_")[0] for name in stored}
    assert names == {"transformer.m.q", "transformer.m.k"}
    got = stored["transformer.m.q.lora_B.weight"] @ stored["transformer.m.q.lora_A.weight"]  # fmt: skip
    torch.testing.assert_close(got, b @ a + delta(work / "a1", "m.q"))


def test_extraction_finds_the_low_rank_changes(work):
    given = ("extract-lora", "--base", "base.safetensors", "tuned.safetensors")
    done = run(*given, "--rank", 2, "-o", "out")
    assert done.exit_code == 0, done.stderr
    for name in ("m.q", "m.v"):
        torch.testing.assert_close(
            delta(work / "out", name), delta(work / "a0", name), rtol=1e-4, atol=1e-5
        )
    assert "2 modules of rank 2" in done.stdout
    assert "norm.weight" in done.stderr
    report = json.loads(run(*given, "--rank", 1, "-o", "one", "--json").stdout)
    assert set(report["modules"]) == {"m.q", "m.v"}
    assert report["left_out"] == {"norm.weight": pytest.approx(0.5 * 8**0.5)}
    assert 0 < report["relative_error"] < 1
    manifest = json.loads((work / "out/manifest.json").read_text())
    assert len(manifest["inputs"]) == 2
    plan = json.loads(run(*given, "--rank", 2, "--dry-run", "--json").stdout)
    assert (plan["modules"], plan["not_covered"]) == (3, 1)


def damage(work, **changes):
    """Write adapter a1 again with other tensors or another configuration."""
    tensors = load_file(work / "a1/adapter_model.safetensors")
    config = json.loads((work / "a1/adapter_config.json").read_text())
    for name in changes.pop("drop", ()):
        del tensors[PREFIX + name]
    for name, value in changes.pop("set", {}).items():
        tensors[PREFIX + name] = value
    write_adapter(work / "a1", tensors, **(config | changes))


HOSTILE = {
    "rank 0 in the configuration": ({"r": 0}, (), "rank"),
    "rank 0 in a factor": (
        {"set": {"m.q.lora_A.weight": torch.ones(0, 8), "m.q.lora_B.weight": torch.ones(6, 0)}},
        (), "at least 1",
    ),
    "half a pair": ({"drop": ["m.q.lora_B.weight"]}, (), "both A and B"),
    "NaN": ({"set": {"m.q.lora_A.weight": torch.full((3, 8), float("nan"))}}, (), "NaN"),
    "NaN at weight 0": (
        {"set": {"m.q.lora_A.weight": torch.full((3, 8), float("nan"))}},
        ("--weight", 1, "--weight", 0), "NaN",
    ),
    "another base": (
        {"set": {"m.q.lora_A.weight": torch.ones(3, 9)}}, (), "different bases",
    ),
    "unequal ranks": ({}, ("--combination", "linear"), "equal ranks"),
    "LoHa": ({"peft_type": "LOHA"}, (), "LOHA"),
    "LoKr factors": ({"set": {"m.q.lokr_w1": torch.ones(2, 2)}}, (), "LoKr"),
    "DoRA": (
        {"set": {f"m.{n}.lora_magnitude_vector": torch.ones(s) for n, s in (("q", 6), ("k", 8))},
         "use_dora": True}, (), "DoRA",
    ),
    "no rank": ({}, ("--rank", 0), "rank"),
    "weights": ({}, ("--weight", 1), "1 weights for 2"),
    "weight nan": ({}, ("--weight", "nan", "--weight", 1), "nan"),
    "density": ({}, ("--density", 0), "density"),
    "combination": ({}, ("--combination", "slerp"), "ziplora"),
    "ziplora": ({}, ("--combination", "ziplora"), "column_scales"),
    "sign": ({}, ("--sign-method", "x"), "total or frequency"),
    "component": ({}, ("--component", "vae"), "vae"),
    "missing": ({}, ("--adapter", "absent"), "absent"),
    "missing base": ({}, ("--base", "absent"), "absent"),
    "a base that is another model": ({}, ("--base", "other.safetensors"), "no weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_requests_leave_nothing(work, case):
    changes, options, expected = HOSTILE[case]
    save_file({"z.weight": torch.ones(2, 2)}, "other.safetensors")
    if changes:
        damage(work, **changes)
    before = sorted(path.name for path in work.iterdir())
    done = run(*TWO, *options, "-o", "out")
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert sorted(path.name for path in work.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--rank", 0, "tuned.safetensors"), "rank"),
        (("--rank", 2, "base.safetensors"), "differs"),
        (("--rank", 2, "nan.safetensors"), "NaN"),
        (("--rank", 2, "other.safetensors"), "only one of"),
        (("--rank", 2, "tuned.safetensors", "--only", "x*"), "x*"),
        (("--rank", 2, "absent.safetensors"), "absent"),
    ],
)
def test_bad_extractions_leave_nothing(work, options, expected):
    tuned = load_file("tuned.safetensors")
    save_file({k: v / 0 for k, v in tuned.items()}, "nan.safetensors")
    save_file({"z.weight": torch.ones(2, 2)}, "other.safetensors")
    before = sorted(path.name for path in work.iterdir())
    done = run("extract-lora", "--base", "base.safetensors", *options, "-o", "out")
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert sorted(path.name for path in work.iterdir()) == before


def test_outputs_that_are_refused(work):
    assert "--output is missing" in run(*TWO).stderr
    (work / "file").write_text("mine")
    (work / "full").mkdir()
    (work / "full/mine").write_text("mine")
    for output in ("file", "full", "a0", "no/where", "."):
        done = run(*TWO, "--overwrite", "-o", output)
        assert done.exit_code == 2, (output, done.output)
        assert len(done.stderr.splitlines()) <= 3
    assert (work / "full/mine").read_text() == (work / "file").read_text() == "mine"


def test_a_configuration_that_points_elsewhere_is_not_followed(work):
    import os

    os.mkfifo(work / "trap")  # to open it would block
    damage(work, base_model_name_or_path=str(work / "trap"), revision="../../evil")
    assert run(*TWO, "-o", "out").exit_code == 0
    config = json.loads((work / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None


def test_adapters_that_name_different_bases_are_mentioned(work):
    assert "bases" not in run(*TWO, "-o", "one").stderr
    damage(work, base_model_name_or_path="/else\x1b[2Jwhere")
    done = run(*TWO, "-o", "two")
    assert done.exit_code == 0
    assert "different bases" in done.stderr
    assert "\x1b" not in done.stderr
    assert run(*TWO, "-o", "three", "-q").stderr == ""


def test_without_the_plugin_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mtk_adapters_lora", None)
    monkeypatch.chdir(tmp_path)
    for command in (TWO, ("extract-lora", "--base", "b", "t", "--rank", "2")):
        done = run(*command, "-o", "out")
        assert done.exit_code == 2
        assert "mtk-adapters-lora, which is not installed" in done.stderr
        assert len(done.stderr.splitlines()) <= 3
