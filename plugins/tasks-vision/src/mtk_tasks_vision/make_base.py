"""Make the base that this package carries: ``python -m mtk_tasks_vision.make_base``.

Takes a minute or two on one thread. With the versions named in ``provenance.json``
the weights come out the same, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from mtk.folders import sha256
from mtk.loading import resolve
from mtk.making import one_thread
from mtk_tasks_vision.track import ASSET

SEED = 0
# The fields of the regime on which the base depends.
_DECIDING = ("pretrain_steps", "pretrain_rate", "handwritten", "batch")
_VERSIONS = ("numpy", "open-clip-torch", "safetensors", "scikit-learn", "torch")


def make(folder: Path) -> dict[str, object]:
    """Pre-train the base, write it to a folder in half precision, say how."""
    # Through `resolve`, because it prepares the import of open_clip.
    pretrain = resolve("mtk_tasks_vision.recipes:pretrain")
    import torch

    from mtk_tasks_vision import model, recipes

    started = time.perf_counter()
    with one_thread():
        base = pretrain(SEED, recipes.REGIME, _show)
    model.save(base, folder, torch.float16)
    weights = folder / model.WEIGHTS_NAME
    facts: dict[str, object] = {
        "script": "python -m mtk_tasks_vision.make_base",
        "seed": SEED,
        "regime": {name: getattr(recipes.REGIME, name) for name in _DECIDING},
        "data": "100 scikit-learn digits (split 'pretrain') and printed glyphs",
        "seconds": round(time.perf_counter() - started),
        "versions": {name: version(name) for name in _VERSIONS},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "sha256": {weights.name: sha256(weights)["sha256"]},
    }
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    (folder / "provenance.json").write_text(text, encoding="utf-8")
    return facts


def _show(message: str, fraction: float) -> None:
    sys.stderr.write(f"{round(100 * fraction):3d} % {message}\n")


def main() -> None:
    """Read the command line and make the base."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ASSET)
    made = make(parser.parse_args().folder)
    sys.stdout.write(json.dumps(made["sha256"]) + "\n")


if __name__ == "__main__":
    main()
