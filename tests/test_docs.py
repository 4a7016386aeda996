"""The documentation says what the code does."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtk

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_generated_parts_are_fresh() -> None:
    pages = [str(p) for p in sorted((ROOT / "docs" / "reference").glob("*.md"))]
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "-P", "--check", "--diff", *pages],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert done.returncode == 0, (
        done.stdout + "\nrun: python -m cogapp -P -r docs/reference/*.md"
    )


def test_every_field_of_every_declaration_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "hooks.md").read_text()
    for kind in (mtk.Method, mtk.Needs, mtk.Param, mtk.Track, mtk.Adapter, mtk.Metric):
        for field in dataclasses.fields(kind):
            assert field.name in text, f"{kind.__name__}.{field.name}"


def test_every_environment_variable_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "environment.md").read_text()
    for file in [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("cli/src/**/*.py")]:
        for name in re.findall(r"[\"'](MTK_[A-Z_]+)[\"']", file.read_text()):
            assert f"`{name}`" in text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        name = str(page.relative_to(ROOT / "docs").with_suffix(""))
        assert name == "index" or name in index, name


def test_the_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make bench" in text
    assert "make test" in text


@pytest.mark.parametrize(
    ("page", "name"),
    [("docs/tutorial/first-method.md", "median"), ("README.md", "mine")],
)
def test_the_methods_we_show_pass_their_checks(
    page: str, name: str, tmp_path: Path
) -> None:
    from mtk.testing import check_method

    code = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert code
    file = tmp_path / f"shown_{name}.py"
    file.write_text(code.group(1))
    report = check_method(name, registry=mtk.load([file]))
    assert report.ok, [r.message for r in report.results if r.outcome == "failed"]
