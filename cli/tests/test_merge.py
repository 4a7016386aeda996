"""``mtk merge`` and ``mtk export``."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

FILED = """
import mtk

def merge(*, experts):
    return experts[0]

@mtk.hookimpl
def mtk_methods():
    yield mtk.Method(name="first", target=merge, summary="The first", symmetric=False)
"""


def test_merge_writes_and_tells(mtk, models):
    outcome = mtk("merge", "--method", "toy_mean", *models, "-o", "m.safetensors")
    assert outcome.code == 0, outcome.err
    merged, e0, e1 = (load_file(f"{n}.safetensors") for n in ("m", "e0", "e1"))
    torch.testing.assert_close(
        merged["c.weight"], (e0["c.weight"] + e1["c.weight"]) / 2
    )
    for words in (
        "m.safetensors: ",
        "peak memory",
        "scale=1 rule=sum",
        "copied",
        "steps",
    ):
        assert words in outcome.out
    assert "tied: b.weight is the same tensor as a.weight" in outcome.out


def test_merge_as_json(mtk, models, toy):
    arguments = ["merge", "-m", "toy_mean", *models, "-p", "scale=0.5", "--json"]
    data = mtk(*arguments, "-o", "m.safetensors").json
    assert data["schema"] == 1
    assert data["params"] == {"scale": 0.5, "rule": "sum"}
    assert data["bytes"] == (toy / "m.safetensors").stat().st_size
    assert data["tied"] == {"b.weight": "a.weight"}


def test_quiet_and_only(mtk, models):
    outcome = mtk(
        "merge", "-m", "toy_mean", *models, "--only", "c.*", "-q", "-o", "m.safetensors"
    )
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    merged, e0 = load_file("m.safetensors"), load_file("e0.safetensors")
    assert torch.equal(merged["a.weight"], e0["a.weight"])
    assert not torch.equal(merged["c.weight"], e0["c.weight"])


def test_dry_run_writes_nothing(mtk, models, toy):
    before = set(toy.iterdir())
    outcome = mtk(
        "merge", "-m", "toy_mean", *models, "--dry-run", "-o", "m.safetensors"
    )
    assert outcome.code == 0
    assert "merged:       3" in outcome.out
    data = mtk("merge", "-m", "toy_mean", *models, "--dry-run", "--json").json
    assert (data["tensors"], data["copied"]) == (4, 1)
    assert set(toy.iterdir()) == before


def test_a_method_in_a_file(mtk, models, toy):
    (toy / "first.py").write_text(FILED)
    assert mtk("merge", "-m", "./first.py", *models, "-o", "m.safetensors").code == 0
    e0 = load_file("e0.safetensors")["c.weight"]
    assert torch.equal(load_file("m.safetensors")["c.weight"], e0)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry-run"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "toy_mean", "-p", "scal=1"], "did you mean 'scale'"),
        (["-m", "toy_mean", "-p", "scale"], "KEY=VALUE"),
        (["-m", "toy_mean", "--expert", "gone.safetensors"], "gone.safetensors"),
        (["-m", "toy_mean", "--expert", "odd.safetensors"], ".weight'"),
        (["-m", "toy_mean", "--expert", "text.safetensors"], "text.safetensors"),
        (["-m", "toy_mean", "--only", "z*"], "z*"),
        (["-m", "toy_many"], "toy_many takes"),
        (["-m", "toy_fisher"], "--statistics"),
        (["-m", "toy_mean", "-o", "e0.safetensors", "--overwrite"], "is the input"),
        (["-m", "toy_mean", "-o", "text.safetensors"], "--overwrite"),
        (["-m", "toy_mean", "-o", "no/where.safetensors"], "does not exist"),
        (["-m", "toy_mean", "--masks", "gone.safetensors"], "gone.safetensors"),
    ],
)
def test_refusals(mtk, models, toy, arguments, words, dry):
    (toy / "text.safetensors").write_text("no tensors")
    save_file({"a.weight": torch.ones(1)}, toy / "odd.safetensors")
    before = set(toy.iterdir())
    outcome = mtk("merge", "-o", "m.safetensors", *models, *arguments, *dry)
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) <= 3
    assert set(toy.iterdir()) == before


def test_a_method_that_fails_has_exit_code_1(mtk, models, toy):
    outcome = mtk("merge", "-m", "toy_broken", *models, "-o", "m.safetensors")
    assert outcome.code == 1
    assert "one reason" in outcome.err
    assert not (toy / "m.safetensors").exists()


@pytest.mark.parametrize("prefix", ["", "fisher="])
def test_statistics(mtk, models, toy, prefix):
    given = []
    for index in range(2):
        save_file(
            {"c.weight": torch.full((2, 4), index + 1.0)}, f"f{index}.safetensors"
        )
        given += ["--statistics", f"{prefix}f{index}.safetensors"]
    outcome = mtk("merge", "-m", "toy_fisher", *models, *given, "-o", "m.safetensors")
    assert outcome.code == 0, outcome.err
    assert "averaged, without a fisher statistic: a.weight" in outcome.out
    merged, e0, e1 = (load_file(f"{n}.safetensors") for n in ("m", "e0", "e1"))
    expected = (e0["c.weight"] + 2 * e1["c.weight"]) / 3
    torch.testing.assert_close(merged["c.weight"], expected)


def test_statistics_are_named_all_or_none(mtk, models):
    given = ["--statistics", "fisher=a", "--statistics", "b"]
    outcome = mtk("merge", "-m", "toy_fisher", *models, *given, "-o", "m.safetensors")
    assert outcome.code == 2
    assert "for all of them" in outcome.err


def test_export_gives_the_checkpoint_of_one_task(mtk, models):
    outcome = mtk("merge", "-m", "toy_masks", *models, "-o", "m.safetensors")
    assert "mtk export m.safetensors --task 0" in outcome.out
    outcome = mtk("export", "m.safetensors", "--task", "1", "-o", "t.safetensors")
    assert outcome.code == 0, outcome.err
    task, e1 = load_file("t.safetensors"), load_file("e1.safetensors")
    assert set(task) == set(e1)
    for name, tensor in e1.items():
        torch.testing.assert_close(task[name], tensor)
    again = mtk("export", "m.safetensors", "--task", "1", "-o", "t.safetensors")
    assert again.code == 2
    replaced = mtk(
        "export",
        *(
            "m.safetensors",
            "--task",
            "0",
            "-o",
            "t.safetensors",
            "--overwrite",
            "--json",
        ),
    ).json
    assert (replaced["task"], replaced["tensors"]) == (0, 4)


@pytest.mark.parametrize(
    ("file", "task", "words"),
    [
        ("m.safetensors", "2", "task 2 of 2"),
        ("e0.safetensors", "0", "not written by mtk"),
        ("text.safetensors", "0", "safetensors"),
    ],
)
def test_export_refuses(mtk, models, toy, file, task, words):
    (toy / "text.safetensors").write_text("no tensors")
    mtk("merge", "-m", "toy_masks", *models, "-o", "m.safetensors")
    outcome = mtk("export", file, "--task", task, "-o", "t.safetensors")
    assert outcome.code == 2
    assert words in outcome.err
    assert not (toy / "t.safetensors").exists()
