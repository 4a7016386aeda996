from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from mtk.errors import AmbiguousName, DeclarationError, UnknownName, UsageError
from mtk.loading import import_file, load, resolve

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
import mtk
def merge(*, experts):
    return experts[0]
@mtk.hookimpl
def mtk_methods():
    yield mtk.Method(name="{name}", target=merge, summary="s")
"""


@pytest.fixture(autouse=True)
def _no_installed_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTK_PLUGINS", "")


@pytest.fixture
def plugin(tmp_path: Path, request: pytest.FixtureRequest):
    """A function that writes a one-file plugin of a unique module name."""
    count = 0

    def write(text: str, name: str = "") -> Path:
        nonlocal count
        count += 1
        path = tmp_path / (name or f"p{abs(hash(request.node.name))}_{count}.py")
        path.write_text(textwrap.dedent(text))
        sys.modules.pop(f"mtk_file_{path.stem}", None)
        return path

    return write


def test_a_one_file_plugin_is_loaded_beside_broken_ones(plugin) -> None:
    files = [
        plugin("import nothing_of_that_name"),
        plugin("import mtk\n@mtk.hookimpl\ndef mtk_method():\n    return []"),
        plugin("def mtk_methods():\n    return []"),
        plugin("import mtk\n@mtk.hookimpl\ndef mtk_methods():\n    yield 3"),
        plugin(
            "import mtk\n@mtk.hookimpl\ndef mtk_methods():\n"
            "    yield mtk.Method(name='ok', target=print, summary='')\n"
            "    yield mtk.Method(name='Bad Name', target=print, summary='')"
        ),
        plugin("import mtk\n@mtk.hookimpl\ndef mtk_methods(strange):\n    return []"),
        plugin(GOOD.format(name="good")),
    ]
    registry = load(files)
    assert [m.item.name for m in registry.methods] == ["good", "ok"]
    causes = [problem.cause for problem in registry.problems]
    assert len(causes) == 6
    assert "nothing_of_that_name" in causes[0]
    assert "did you mean 'mtk_methods'" in causes[1]
    assert "hookimpl" in causes[2]
    assert "int, not Method" in causes[3]
    assert "wrong declaration" in causes[4]
    assert all(problem.distribution for problem in registry.problems)


def test_strict_mode_raises(plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTK_STRICT_PLUGINS", "1")
    with pytest.raises(ImportError):
        load([plugin("import nothing_of_that_name")])


def test_one_name_twice_fails_only_when_it_is_used(plugin) -> None:
    one, two = plugin(GOOD.format(name="same")), plugin(GOOD.format(name="same"))
    registry = load([one, two])
    assert not registry.problems
    with pytest.raises(AmbiguousName, match=f"{one.stem}:same"):
        registry.method("same")
    assert registry.method(f"{two.stem}:same").plugin.distribution == two.stem
    assert set(registry.ambiguous()) == {"same"}


def test_unknown_names_get_a_suggestion_and_dashes_are_accepted(plugin) -> None:
    registry = load([plugin(GOOD.format(name="my_merge"))])
    assert registry.method("my-merge").item.name == "my_merge"
    with pytest.raises(UnknownName, match="did you mean 'my_merge'"):
        registry.method("my_marge")
    with pytest.raises(UnknownName, match="list-tasks"):
        registry.track("nope")


def test_a_missing_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such"):
        import_file(tmp_path / "absent.py")


def test_installed_plugins_are_selected_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Entry:
        name = "fake"
        dist = type("D", (), {"name": "mtk-fake", "version": "9"})

        def load(self):
            raise RuntimeError("boom\nmore")

    monkeypatch.setattr("mtk.loading.metadata.entry_points", lambda group: [Entry()])
    assert not load().problems
    monkeypatch.setenv("MTK_PLUGINS", "other, mtk-fake")
    (problem,) = load().problems
    assert str(problem) == "mtk-fake 9 (fake): import failed: RuntimeError: boom"


def test_calls_are_traced(
    plugin, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MTK_TRACE", "1")
    load([plugin(GOOD.format(name="traced"))])
    assert "mtk_methods()" in capsys.readouterr().err


def test_resolve_imports_what_a_string_names() -> None:
    assert resolve("json:dumps") is __import__("json").dumps
    assert resolve("os:path.join") is __import__("os").path.join
    assert resolve("json") is __import__("json")
    assert resolve(print) is print
    for wrong in ("json:nothing", "no_such_module_at_all:x"):
        with pytest.raises(DeclarationError, match="cannot be imported"):
            resolve(wrong)


def test_the_torchvision_shim_lets_torchvision_be_imported() -> None:
    pytest.importorskip("torch")
    code = (
        "import importlib.util, sys\n"
        "if importlib.util.find_spec('torchvision') is None: sys.exit(0)\n"
        "from mtk._torchvision import ensure_importable\n"
        "first = ensure_importable()\n"
        "assert not ensure_importable()\n"
        "import torchvision, torch\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
