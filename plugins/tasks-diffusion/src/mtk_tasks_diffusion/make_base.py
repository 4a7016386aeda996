"""Make the base and the judge of this package: ``python -m mtk_tasks_diffusion.make_base``.

Takes some minutes on one thread. With the versions named in ``provenance.json`` the
weights come out the same, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtk.folders import sha256
from mtk.loading import resolve
from mtk.making import one_thread
from mtk_tasks_diffusion.track import ASSET, JUDGE

SEED = 0
# The fields of the regime on which the base depends.
_DECIDING = ("pretrain_steps", "pretrain_rate", "pretrain_batch", "wrong", "blank")
_VERSIONS = ("diffusers", "numpy", "safetensors", "scikit-learn", "torch")


def make(base: Path, judge: Path) -> dict[str, Any]:
    """Train both, write them to two folders, and say how in each."""
    # Through `resolve`, because it prepares the import of diffusers.
    pretrain = resolve("mtk_tasks_diffusion.recipes:pretrain")
    import torch

    from mtk_tasks_diffusion import judge as judges
    from mtk_tasks_diffusion import model, recipes

    started = time.perf_counter()
    with one_thread():
        judges.save(judges.train(SEED), judge)
    _write(
        judge,
        judges.WEIGHTS_NAME,
        started,
        {"ceiling": judges.ceiling(judges.load(judge))},
    )
    started = time.perf_counter()
    with one_thread():
        unet = pretrain(SEED, recipes.REGIME, _show)
    model.save(unet, base, torch.float16)  # half precision is enough, and small
    regime = {name: getattr(recipes.REGIME, name) for name in _DECIDING}
    return _write(base, model.WEIGHTS_NAME, started, {"regime": regime})


def _write(
    folder: Path, name: str, started: float, more: dict[str, Any]
) -> dict[str, Any]:
    """Put a provenance file beside weights, and return what it says."""
    facts: dict[str, Any] = {
        "script": "python -m mtk_tasks_diffusion.make_base",
        "seed": SEED,
        "data": "scikit-learn digits (split 'train') in five styles",
        "data_sha256": data_hash(),
        "seconds": round(time.perf_counter() - started),
        "versions": {package: version(package) for package in _VERSIONS},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "sha256": {name: sha256(folder / name)["sha256"]},
        **more,
    }
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    (folder / "provenance.json").write_text(text, encoding="utf-8")
    return facts


def data_hash() -> str:
    """SHA-256 of all training images of all styles with their labels, in order."""
    from mtk_tasks_diffusion import data
    from mtk_tasks_diffusion.cells import STYLES

    digest = hashlib.sha256()
    for style in STYLES:
        pixels, labels, _ = data.images(style, tuple(range(10)), "train")
        digest.update(pixels.astype("<f4").tobytes() + labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _show(message: str, fraction: float) -> None:
    sys.stderr.write(f"{round(100 * fraction):3d} % {message}\n")


def main() -> None:
    """Read the command line and make both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", type=Path, default=ASSET)
    parser.add_argument("judge", nargs="?", type=Path, default=JUDGE)
    given = parser.parse_args()
    made = make(given.base, given.judge)
    sys.stdout.write(json.dumps(made["sha256"]) + "\n")


if __name__ == "__main__":
    main()
