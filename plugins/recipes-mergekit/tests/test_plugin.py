from __future__ import annotations

import subprocess
import sys

import mtk
from mtk.loading import resolve


def test_the_format_is_offered_for_yaml_files():
    found = [provided.item for provided in mtk.load().recipes]
    (ours,) = [item for item in found if item.name == "mergekit"]
    assert ours.suffixes == (".yml", ".yaml")
    assert resolve(ours.target).__name__ == "read"


def test_reading_imports_no_torch(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]"
    )
    code = (
        "import sys; from mtk_recipes_mergekit.reading import read; "
        f"read({str(path)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
