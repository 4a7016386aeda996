"""Each plugin's own tests pass with nothing of mtk installed but the core and that plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_plugin_stands_alone(
    plugin: Path, wheels: Path, environment, tmp_path
) -> None:
    alone = environment(tmp_path)
    name = f"mtk_{plugin.name.replace('-', '_')}"
    alone.install(*wheels.glob("mtk_core-*.whl"), *wheels.glob(f"{name}-*.whl"))
    listed = alone.run(
        "-c", "import mtk; print([p.distribution for p in mtk.load().plugins])"
    )
    assert listed.stdout.strip() == f"['mtk-{plugin.name}']", listed.stderr
    done = alone.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", plugin / "tests", cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-3000:]
