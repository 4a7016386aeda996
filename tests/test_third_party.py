"""Somebody else's package joins: built, installed, listed, checked and scored.

The fresh environment has the built wheels of mtk and of the plugins, and nothing of this
checkout. Only the libraries beneath (torch and so on) are shared with the environment that
runs the tests, because they cannot be downloaded here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def fresh(wheels: Path, environment, tmp_path_factory: pytest.TempPathFactory):
    made = environment(tmp_path_factory.mktemp("fresh"))
    made.install(*wheels.glob("*.whl"))
    return made


def test_the_environment_runs_the_wheels_and_not_the_checkout(
    fresh,
) -> None:
    code = "import mtk, mtk_cli, mtk_metrics as m; print(mtk.__file__, mtk_cli.__file__, m.__file__)"
    done = fresh.run("-c", code)
    assert str(ROOT) not in done.stdout.replace(str(ROOT / ".venv"), "")
    assert str(fresh.folder) in done.stdout
    plugins = json.loads(fresh.mtk("plugins", "--json"))
    assert not plugins["problems"]
    assert len(plugins["plugins"]) == len(list(ROOT.glob("plugins/*/pyproject.toml")))


def test_the_template_package_joins(fresh, build, tmp_path: Path) -> None:
    source = tmp_path / "template"
    shutil.copytree(ROOT / "contrib" / "template", source)
    build(source, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    fresh.install(wheel)
    listed = json.loads(fresh.mtk("list-methods", "--json"))["methods"]
    assert "my_merge" in [method["name"] for method in listed]
    assert "failed" not in fresh.mtk("check", "my_merge")


def test_it_stands_in_the_table_with_a_rank(fresh) -> None:
    out = json.loads(
        fresh.mtk(
            "bench",
            "--track",
            "digits-clip",
            "--method",
            "my-merge",
            "--method",
            "task_arithmetic",
            "--json",
        )
    )
    rows = {row["name"]: row for row in out["rows"]}
    assert {"my_merge", "task_arithmetic", "average", "pretrained", "experts"} <= set(
        rows
    )
    assert rows["my_merge"]["rank"] in (1, 2, 3)
    assert rows["my_merge"]["held_in"] > rows["pretrained"]["held_in"]
    table = fresh.mtk("bench", "--track", "digits-clip", "--method", "my_merge")
    assert "my_merge" in table
    assert "average" in table


def test_new_plugin_writes_a_package_that_installs(
    fresh, build, tmp_path: Path
) -> None:
    fresh.mtk("new-plugin", "fine-merge", "--output", tmp_path / "made")
    build(tmp_path / "made", tmp_path)
    fresh.install(*tmp_path.glob("*.whl"))
    assert "fine_merge" in fresh.mtk("list-methods")


BROKEN = {
    "import-error": "import no_such_module_xyz",
    "misspelt": "import mtk\n@mtk.hookimpl\ndef mtk_method():\n    return []",
    "wrong": (
        "import mtk\n@mtk.hookimpl\ndef mtk_methods():\n"
        "    yield mtk.Method(name='No Good', target=print, summary='')"
    ),
    "duplicate": (
        "import mtk\ndef f(*, experts):\n    return experts[0]\n@mtk.hookimpl\n"
        "def mtk_methods():\n    yield mtk.Method(name='average', target=f, summary='')"
    ),
    "raises": (
        "import mtk\ndef f(*, experts):\n    raise RuntimeError('boom')\n"
        "def g(*, experts):\n    return experts[0] * float('nan')\n"
        "def h(*, experts):\n    return experts[0].add_(1)\n"
        "def k(*, experts):\n    return experts[0].flatten()[:1]\n"
        "@mtk.hookimpl\ndef mtk_methods():\n"
        "    yield mtk.Method(name='boom', target=f, summary='')\n"
        "    yield mtk.Method(name='nan', target=g, summary='')\n"
        "    yield mtk.Method(name='inplace', target=h, summary='')\n"
        "    yield mtk.Method(name='shape', target=k, summary='', scope='tensor')"
    ),
}


def test_broken_packages_are_named_and_stop_nobody(
    wheels: Path, tmp_path: Path, fresh, environment, build
) -> None:
    broken = environment(tmp_path / "broken")
    broken.env["MTK_CACHE"] = fresh.env["MTK_CACHE"]
    for name, text in BROKEN.items():
        folder = tmp_path / name
        folder.mkdir()
        module = f"broken_{name.replace('-', '_')}"
        (folder / f"{module}.py").write_text(text)
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "broken-{name}"\nversion = "3.1"\n'
            f'[project.entry-points.mtk]\nx = "{module}"\n'
            f'[tool.hatch.build.targets.wheel]\ninclude = ["{module}.py"]\n'
        )
        build(folder, tmp_path)
    broken.install(*wheels.glob("*.whl"), *tmp_path.glob("*.whl"))
    problems = broken.mtk("plugins", "--json")
    named = {problem["distribution"] for problem in json.loads(problems)["problems"]}
    assert named == {"broken-import-error", "broken-misspelt", "broken-wrong"}
    assert "task_arithmetic" in broken.mtk("list-methods")
    ambiguous = broken.mtk("show", "average", code=2)
    assert "broken-duplicate 3.1" in ambiguous
    assert "mtk-methods-weights:average" in ambiguous
    names = ["boom", "nan", "inplace", "shape", "mtk-methods-weights:average"]
    arguments = [part for name in names for part in ("--method", name)]
    out = broken.mtk("bench", "--track", "digits-clip", *arguments, code=1)
    for name in names[:4]:
        assert f"broken-raises:{name}" in out
    assert "average" in out
