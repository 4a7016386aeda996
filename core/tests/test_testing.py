"""Reports, expectations, and the three ways in."""

from __future__ import annotations

import json
import textwrap

import pytest
import torch

import mtk
from mtk.errors import UnknownName, UsageError
from mtk.loading import Plugin, Provided, Registry
from mtk.testing import (
    CHECKS,
    CheckReport,
    CheckResult,
    check_method,
    make_case,
    parametrize_checks,
    toy_registry,
)
from mtk.testing._checks import run_check, subject_of

pytest_plugins = ["pytester"]


def mean(*, experts):
    return torch.stack(experts).mean(0)


def lopsided(*, experts):
    return experts[0]


GOOD = mtk.Method(name="good", target=mean, summary="A mean", paper="unpublished")
LOPSIDED = mtk.Method(name="lopsided", target=lopsided, summary="One", paper="none")


def result(outcome, reason="", id_="contract.shapes"):
    return CheckResult(id=id_, group="contract", outcome=outcome, reason=reason)


def test_ids_are_unique_and_grouped():
    ids = [check.id for check in CHECKS]
    assert len(set(ids)) == len(ids)
    groups = list(dict.fromkeys(check.group for check in CHECKS))
    assert groups == ["declaration", "contract", "needs", "invariants", "protocol"]
    assert all(check.why.endswith(".") and "\n" not in check.why for check in CHECKS)
    known = set(ids)
    assert all(set(check.requires) <= known for check in CHECKS)


def test_summary_counts_everything():
    results = (
        *[result("passed")] * 21,
        result("expected failure", "known"),
        *[result("not applicable", "declares no LoRA support")] * 3,
    )
    report = CheckReport(method="ties", results=results)
    assert report.summary() == (
        "25 checks: 21 passed, 1 expected failure, "
        "3 not applicable (declares no LoRA support)"
    )
    assert report.ok


def test_summary_of_several_reasons_and_plurals():
    results = (
        result("unexpected pass"),
        result("unexpected pass"),
        result("failed"),
        result("not applicable", "one"),
        result("not applicable", "two"),
    )
    report = CheckReport(method="x", results=results)
    assert report.summary() == (
        "5 checks: 1 failed, 2 unexpected passes, 2 not applicable (one; two)"
    )
    assert not report.ok
    assert len(report.failures) == 3


def test_report_is_data():
    report = check_method(GOOD)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["method"] == "good"
    assert data["ok"] is True
    assert data["schema"]
    assert sum(data["counts"].values()) == len(data["results"]) == len(CHECKS)
    assert set(data["results"][0]) == {"id", "group", "outcome", "message", "reason"}


def test_everything_not_applicable_has_a_reason():
    for found in check_method(GOOD).results:
        assert bool(found.reason) == (found.outcome == "not applicable")
        assert bool(found.message) == (found.outcome == "failed")


def test_an_expected_failure_is_no_failure():
    plain = check_method(LOPSIDED)
    assert [found.id for found in plain.failures] == ["invariants.symmetric"]
    expected = {"invariants.symmetric": "it prefers the first"}
    report = check_method(LOPSIDED, expected_failures=expected)
    assert report.ok
    (found,) = [r for r in report.results if r.outcome == "expected failure"]
    assert found.reason == "it prefers the first"
    assert found.message


def test_an_unexpected_pass_fails():
    expected = {"invariants.symmetric": "it was once lopsided"}
    report = check_method(GOOD, expected_failures=expected)
    assert not report.ok
    assert [found.outcome for found in report.failures] == ["unexpected pass"]
    assert "it was once lopsided" in report.failures[0].message


def test_expectations_must_name_a_check_and_a_reason():
    with pytest.raises(UsageError, match="did you mean"):
        check_method(GOOD, expected_failures={"contract.shape": "typo"})
    with pytest.raises(UsageError, match="reason"):
        check_method(GOOD, expected_failures={"contract.shapes": " "})


def test_methods_are_found_by_name_in_a_registry():
    registry = toy_registry(GOOD)
    assert subject_of("good", registry).name == "checked:good"
    with pytest.raises(UnknownName):
        check_method("goof", registry=registry)


def test_a_qualified_name_stands_in_the_snippet(monkeypatch):
    plugin = Plugin(
        distribution="dist",
        version="1",
        entry_point="e",
        module="mtk.testing._toy",
        seconds=0.0,
        hooks=(),
        imported_torch=False,
    )
    provided = Provided(LOPSIDED, plugin)
    monkeypatch.setattr(
        "mtk.testing._models.load", lambda: Registry(methods=[provided])
    )
    (symmetric,) = [check for check in CHECKS if check.id == "invariants.symmetric"]
    found = run_check(CHECKS, symmetric, subject_of(provided))
    code = textwrap.dedent(found.message.partition("Reproduce:\n")[2])
    assert "make_case('dist:lopsided')" in code
    exec(code, {})


@parametrize_checks(GOOD)
def test_one_test_per_check(check):
    check()


@parametrize_checks(LOPSIDED, expected_failures={"invariants.symmetric": "first only"})
def test_one_test_per_check_with_an_expected_failure(check):
    check()


SUITE = """
import torch, mtk, mtk.testing

def lopsided(*, experts):
    return experts[0]

METHOD = mtk.Method(name="m", target=lopsided, summary="One", paper="none")

@mtk.testing.parametrize_checks(METHOD, expected_failures={expected})
def test_method(check):
    check()
"""


@pytest.mark.parametrize(
    ("expected", "failed", "xfailed"),
    [
        ({}, 1, 0),
        ({"invariants.symmetric": "first only"}, 0, 1),
        ({"invariants.symmetric": "first only", "contract.shapes": "no"}, 1, 1),
    ],
)
def test_outcomes_in_a_suite(pytester, expected, failed, xfailed):
    pytester.makepyfile(SUITE.format(expected=expected))
    run = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-q")
    counts = run.parseoutcomes()
    assert counts.get("failed", 0) == failed
    assert counts.get("xfailed", 0) == xfailed
    assert sum(counts.values()) == len(CHECKS)


def test_ids_show_in_a_suite(pytester):
    pytester.makepyfile(SUITE.format(expected={}))
    run = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--collect-only", "-q")
    run.stdout.fnmatch_lines(["*::test_method[[]contract.bfloat16]"])


def test_a_case_tells_how_it_was_made():
    case = (
        make_case(GOOD, experts=2, dtype="bfloat16").make_equal_to_base(0).permute(1, 0)
    )
    assert case.recipe == [
        "case = make_case(method, experts=2, dtype='bfloat16')",
        "case.make_equal_to_base(0)",
        "case.permute(1, 0)",
    ]
    assert torch.equal(case.experts[1]["head.bias"], case.base["head.bias"])
    assert case.merge().tensors["head.bias"].dtype == torch.bfloat16


def test_cases_are_the_same_every_time_and_scattered_in_memory_on_request():
    one, two = make_case(GOOD), make_case(GOOD).make_non_contiguous()
    for name, tensor in one.base.items():
        assert torch.equal(tensor, two.base[name])
        assert not two.base[name].is_contiguous()


def test_low_rank_experts_differ_by_rank_one():
    case = make_case(GOOD).make_low_rank()
    for expert in case.experts:
        vector = expert["hidden.weight"] - case.base["hidden.weight"]
        assert torch.linalg.matrix_rank(vector, rtol=1e-4) == 1
        assert torch.equal(expert["norm.weight"], case.base["norm.weight"])


def test_the_toy_track_tells_methods_apart(tmp_path):
    found = mtk.bench(
        track="toy",
        results=tmp_path / "results",
        cache=tmp_path / "cache",
        registry=toy_registry(GOOD),
    )
    rows = {row.name: row for row in found.rows}
    assert not found.failures
    assert rows["pretrained"].held_in < rows["good"].held_in < rows["experts"].held_in
    assert rows["good"].generalization > rows["pretrained"].generalization


def test_the_seed_of_the_toy_track_changes_experts_and_not_the_base(tmp_path):
    from safetensors.torch import load_file

    from mtk.testing._toy import ToyTrack

    one, two, again = (
        ToyTrack(cache=tmp_path, seed=seed, options={}).prepare(lambda *_: None)
        for seed in (0, 1, 0)
    )
    base, other = load_file(one["base"]), load_file(two["base"])
    assert all(torch.equal(tensor, other[name]) for name, tensor in base.items())
    experts = [
        load_file(made["experts"][0])["head.weight"] for made in (one, two, again)
    ]
    assert not torch.equal(experts[0], experts[1])
    assert torch.equal(experts[0], experts[2])


def test_importing_the_checks_leaves_pytest_alone():
    import subprocess
    import sys

    code = "import sys, mtk.testing; print('pytest' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "False"
