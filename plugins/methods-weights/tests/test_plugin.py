"""The catalogue: what is declared, and that it is light."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import metadata
from importlib.resources import files

import pytest
import torch

from mtk.errors import MtkError, ParameterError
from mtk.loading import resolve

NAMES = [
    "average", "dare", "emr", "iso_c", "karcher", "linear", "multislerp", "slerp",
    "smile", "task_arithmetic", "ties",
]  # fmt: skip
STATIC = sorted(set(NAMES) - {"emr", "smile"})


def test_names(methods):
    assert sorted(methods) == NAMES


def test_entry_point():
    found = {entry.name: entry.value for entry in metadata.entry_points(group="mtk")}
    assert found["methods-weights"] == "mtk_methods_weights.plugin"
    assert files("mtk_methods_weights").joinpath("py.typed").is_file()


def test_catalogue_does_not_import_torch():
    code = (
        "import sys; from mtk_methods_weights import plugin;"
        "list(plugin.mtk_methods()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_targets_exist_and_have_docstrings(methods, name):
    method = methods[name]
    scans = [scan.target for scan in method.scans]
    for target in filter(None, [method.target, method.decode, method.route, *scans]):
        function = resolve(target)
        assert function.__doc__
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("name", NAMES)
def test_grids_are_small_and_start_at_the_default(methods, name):
    method = methods[name]
    assert len(method.grid) <= 12
    for param in method.params:
        assert not param.grid or param.default in param.grid


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype_and_shape(methods, merge, models, name, dtype):
    base, experts = models(2, dtype)
    merged = merge(name, experts, base)
    state = merged.task(0) if methods[name].output == "per_task" else merged.tensors
    for key, tensor in base.items():
        assert state[key].dtype == dtype
        assert state[key].shape == tensor.shape


@pytest.mark.parametrize("name", STATIC)
def test_strides_do_not_matter(merge, models, name):
    base, experts = models(2)
    plain = merge(name, experts, base).tensors
    for state in (base, *experts):
        state["head.weight"] = state["head.weight"].T.contiguous().T
    torch.testing.assert_close(merge(name, experts, base).tensors, plain)


@pytest.mark.parametrize("name", STATIC)
def test_experts_equal_to_the_base_give_the_base(merge, models, name):
    base, _ = models()
    merged = merge(name, [dict(base), dict(base)], base)
    torch.testing.assert_close(merged.tensors, base)


@pytest.mark.parametrize("name", sorted(set(STATIC) - {"slerp", "dare"}))
def test_order_of_experts_does_not_matter(merge, models, name):
    base, experts = models()
    other = merge(name, experts[::-1], base).tensors
    torch.testing.assert_close(merge(name, experts, base).tensors, other)


@pytest.mark.parametrize(
    "name", ["average", "linear", "slerp", "multislerp", "karcher"]
)
def test_identical_experts_give_that_expert(merge, models, name):
    base, (expert, *_) = models()
    merged = merge(name, [expert, dict(expert)], base)
    torch.testing.assert_close(merged.tensors, expert)


@pytest.mark.parametrize("name", ["average", "linear"])
def test_one_expert_comes_out_bit_by_bit(merge, models, name):
    base, (expert, *_) = models()
    merged = merge(name, [expert], base)
    assert all(torch.equal(merged.tensors[key], expert[key]) for key in expert)


@pytest.mark.parametrize(
    ("name", "count"), [("slerp", 1), ("slerp", 3), ("multislerp", 1), ("karcher", 1)]
)
def test_wrong_number_of_experts_is_refused(merge, models, name, count):
    base, experts = models(count)
    with pytest.raises(MtkError, match="experts"):
        merge(name, experts, base)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ties", {"density": 1.5}),
        ("ties", {"merge_func": "median"}),
        ("ties", {"weights": [1.0]}),
        ("slerp", {"t": -0.1}),
        ("karcher", {"iterations": 0}),
        ("smile", {"rank": 0}),
        ("smile", {"gate_rank": 0}),
        ("linear", {"weights": [1.0, -1.0]}),
        ("karcher", {"weights": [1.0, -1.0]}),
    ],
)
def test_bad_parameters_are_refused(merge, models, name, params):
    base, experts = models(2)
    with pytest.raises(ParameterError):
        merge(name, experts, base, **params)
