"""README's merge, run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
SECTION = re.compile(r"## Merge checkpoints\n(.*?)\n## ", re.DOTALL)
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def test_three_llamas_are_made_merged_loaded_and_generate(tmp_path: Path) -> None:
    """In a minute; the folder holds everything that README says."""
    section = SECTION.search(README.read_text())
    assert section
    blocks = BLOCK.findall(section[1])
    make, generate = (text for kind, text in blocks if kind == "python")
    shell = next(text for kind, text in blocks if kind == "sh")
    (tmp_path / "make_llamas.py").write_text(make)
    (tmp_path / "generate.py").write_text(generate)
    start = time.monotonic()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for script in (shell, "python generate.py"):
        done = subprocess.run(
            ["/bin/bash", "-ec", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert re.search(r"tensor\(\[\[(\s*\d+,){12}\s*\d+\]\]\)", done.stdout)
    assert time.monotonic() - start < 60
    made = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "tokenizer.json", "README.md", "manifest.json"} <= made
