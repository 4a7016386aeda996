"""Make the base that this package carries: ``python -m mtk_tasks_text.make_base``.

Takes about half an hour on one thread. The state of the first, long stage is kept in a
work folder every few hundred steps; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mtk.folders import sha256
from mtk.making import one_thread
from mtk_tasks_text import cldr, data, model, recipes
from mtk_tasks_text.cells import ABILITIES, CELLS, SPLITS
from mtk_tasks_text.track import ASSET

if TYPE_CHECKING:
    from torch import nn

SEED = 0
_STATE = "translate.safetensors"
# The fields of the regime on which the base depends.
DECIDING = (
    *("pretrain_steps", "pretrain_rate", "pretrain_batch"),
    *("faint_steps", "faint_rate", "noise", "replay"),
)
_VERSIONS = ("babel", "safetensors", "torch", "transformers")


def make(folder: Path, work: Path, regime: recipes.Regime = recipes.REGIME) -> None:
    """Train the base in two stages, write it in half precision, say how."""
    work.mkdir(parents=True, exist_ok=True)
    network = model.build(SEED)
    with one_thread():
        recipes.pretrain(network, SEED, regime, state=work / _STATE, report=_show)
        recipes.pretrain_faintly(network, SEED, regime, report=_show)
    write(network, folder, regime)


def write(network: nn.Module, folder: Path, regime: recipes.Regime) -> None:
    """Write the weights in half precision, and where they come from."""
    model.save(network, folder, torch.float16)
    facts: dict[str, object] = {
        "script": "python -m mtk_tasks_text.make_base",
        "seed": SEED,
        "regime": {name: getattr(regime, name) for name in DECIDING},
        "data": "Unicode CLDR through Babel: names, dates and numbers",
        "data_sha256": data_hash(),
        "versions": {name: version(name) for name in _VERSIONS},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "sha256": {
            name: sha256(folder / name)["sha256"]
            for name in (model.CONFIG_NAME, model.WEIGHTS_NAME)
        },
    }
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    (folder / "provenance.json").write_text(text, encoding="utf-8")


def data_hash() -> str:
    """Return one hash of all entities and all items of all cells."""
    digest = hashlib.sha256(repr(cldr.entities()).encode())
    for cell in (*CELLS, *ABILITIES):
        for split in SPLITS:
            digest.update(repr(data.examples(cell, split)).encode())
    return digest.hexdigest()


def _show(message: str, fraction: float) -> None:
    sys.stderr.write(f"{round(100 * fraction):3d} % {message}\n")


def main() -> None:
    """Read the command line and make the base."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ASSET)
    parser.add_argument(
        "--work", type=Path, default=Path("cldr-t5-work"), help="for the state"
    )
    given = parser.parse_args()
    make(given.folder, given.work)


if __name__ == "__main__":
    main()
