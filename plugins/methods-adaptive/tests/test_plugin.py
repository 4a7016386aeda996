"""The catalogue: what is declared, and that it is light."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import metadata
from importlib.resources import files

import pytest

from mtk.errors import ParameterError, UsageError
from mtk.loading import resolve


def test_names(methods):
    assert sorted(methods) == ["adamerging"]


def test_entry_point():
    found = {entry.name: entry.value for entry in metadata.entry_points(group="mtk")}
    assert found["methods-adaptive"] == "mtk_methods_adaptive.plugin"
    assert files("mtk_methods_adaptive").joinpath("py.typed").is_file()


def test_catalogue_does_not_import_torch():
    code = (
        "import sys; from mtk_methods_adaptive import plugin;"
        "list(plugin.mtk_methods()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_declaration(methods):
    method = methods["adamerging"]
    assert method.needs.data == "unlabelled"
    assert method.needs.gradients
    assert method.needs.outputs == ("categorical",)
    parameters = inspect.signature(resolve(method.target)).parameters
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    declared = {param.name for param in method.params} - {"seed"}
    assert set(parameters) == declared | {"experts", "base", "tasks", "random"}


def test_data_of_every_task_are_asked_for(merge, models):
    base, experts = models(2)
    with pytest.raises(UsageError, match="data"):
        merge("adamerging", experts, base)


@pytest.mark.parametrize(
    "params",
    [
        {"steps": -1},
        {"learning_rate": 0.0},
        {"initial": [0.1, 0.2, 0.3]},
        {"granularity": "layer"},
    ],
)
def test_bad_parameters_are_refused(merge, models, params):
    base, experts = models(2)
    with pytest.raises(ParameterError):
        merge("adamerging", experts, base, {"tasks": [object()] * 2}, **params)
