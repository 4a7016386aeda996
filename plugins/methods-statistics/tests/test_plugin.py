"""The catalogue: what is declared, and that it is light."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import metadata
from importlib.resources import files

import pytest
import torch

from mtk.errors import ParameterError, UsageError
from mtk.loading import resolve

NAMES = ["fisher", "regmean"]


@pytest.fixture
def statistics(draw):
    """``statistics(method, base, experts)``: a positive statistic per expert."""

    def make(name, base, experts):
        def one(tensor):
            if name == "fisher":
                return draw(*tensor.shape).square()
            x = draw(4 * tensor.shape[-1], tensor.shape[-1])
            return x.T @ x / len(x)

        names = [n for n in base if name == "fisher" or base[n].ndim == 2]
        return {"statistics": [{n: one(base[n]) for n in names} for _ in experts]}

    return make


def test_names(methods):
    assert sorted(methods) == NAMES


def test_entry_point():
    found = {entry.name: entry.value for entry in metadata.entry_points(group="mtk")}
    assert found["methods-statistics"] == "mtk_methods_statistics.plugin"
    assert files("mtk_methods_statistics").joinpath("py.typed").is_file()


def test_catalogue_does_not_import_torch():
    code = (
        "import sys; from mtk_methods_statistics import plugin;"
        "list(plugin.mtk_methods()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_targets(methods, name):
    method = methods[name]
    for target in (method.target, *(scan.target for scan in method.scans)):
        kinds = {p.kind for p in inspect.signature(resolve(target)).parameters.values()}
        assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    assert len(method.grid) <= 12
    stages = {param.name for param in method.params if param.stage == "statistic"}
    assert stages == {"examples"} | ({"estimator"} if name == "fisher" else set())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype_and_shape(merge, models, statistics, name, dtype):
    base, experts = models(2, dtype)
    merged = merge(name, experts, more=statistics(name, base, experts))
    for key, tensor in base.items():
        assert merged.tensors[key].dtype == dtype
        assert merged.tensors[key].shape == tensor.shape


@pytest.mark.parametrize("name", NAMES)
def test_order_of_experts_does_not_matter(merge, models, statistics, name):
    base, experts = models()
    given = statistics(name, base, experts)["statistics"]
    one = merge(name, experts, more={"statistics": given})
    two = merge(name, experts[::-1], more={"statistics": given[::-1]})
    torch.testing.assert_close(one.tensors, two.tensors)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3])
def test_identical_experts_give_that_expert(merge, models, statistics, name, count):
    base, (expert, *_) = models()
    experts = [dict(expert) for _ in range(count)]
    merged = merge(name, experts, more=statistics(name, base, experts))
    torch.testing.assert_close(merged.tensors, expert)


@pytest.mark.parametrize("name", NAMES)
def test_without_any_statistic_it_is_the_weighted_mean(merge, models, name):
    _, experts = models()
    more = {"statistics": [{"scale": torch.ones(())}] * 3} if name == "fisher" else None
    more = more or {"statistics": [{"fc.weight": torch.eye(5)}] * 3}
    merged = merge(name, experts, more=more, weights=[1.0, 2.0, 3.0])
    want = (
        sum(w * e["head.weight"] for w, e in zip((1, 2, 3), experts, strict=True)) / 6
    )
    torch.testing.assert_close(merged.tensors["head.weight"], want)
    (missing,) = merged.report.without_statistic.values()
    assert "head.weight" in missing


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_sum_to_zero_are_refused(merge, models, statistics, name):
    base, experts = models(2)
    given = statistics(name, base, experts)
    with pytest.raises(ParameterError):
        merge(name, experts, more=given, weights=[0.0, 0.0])


@pytest.mark.parametrize("name", NAMES)
def test_missing_statistics_are_refused(merge, models, name):
    _, experts = models(2)
    with pytest.raises(UsageError, match="statistic"):
        merge(name, experts)
