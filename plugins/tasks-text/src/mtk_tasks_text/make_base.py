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
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from mtk.folders import sha256
from mtk_tasks_text import cldr, data, model, recipes
from mtk_tasks_text.cells import ABILITIES, CELLS, SPLITS
from mtk_tasks_text.track import ASSET

if TYPE_CHECKING:
    from torch import nn

SEED = 0
_EVERY = 200
# The fields of the regime on which the base depends.
DECIDING = (
    *("pretrain_steps", "pretrain_rate", "pretrain_batch"),
    *("faint_steps", "faint_rate", "noise", "replay"),
)
_VERSIONS = ("babel", "safetensors", "torch", "transformers")


def make(folder: Path, work: Path, regime: recipes.Regime = recipes.REGIME) -> None:
    """Train the base in two stages, write it in half precision, say how."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    network = first_stage(work, regime)
    recipes.pretrain_faintly(network, SEED, regime, _say(regime.faint_steps))
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


def first_stage(work: Path, regime: recipes.Regime = recipes.REGIME) -> nn.Module:
    """Translate names, dates and numbers; go on from the state in ``work``."""
    network = model.build(SEED)
    optimiser = recipes.adamw(network)
    first = _restore(network, optimiser, work / "translate.safetensors")

    say = _say(regime.pretrain_steps)

    def after(step: int, trained: nn.Module, by: torch.optim.Optimizer) -> None:
        say(step, trained, by)
        done = step + 1
        if done % _EVERY == 0 or done == regime.pretrain_steps:
            _keep(trained, by, done, work / "translate.safetensors")

    recipes.train(
        network,
        recipes.translations,
        steps=regime.pretrain_steps,
        size=regime.pretrain_batch,
        seed=SEED,
        rate=recipes.one_cycle(regime.pretrain_rate, regime.pretrain_steps),
        first=first,
        half=True,
        optimiser=optimiser,
        after=after,
    )
    return network


def _say(steps: int) -> recipes.After:
    def after(step: int, *_: object) -> None:
        sys.stderr.write(f"\rstep {step + 1} of {steps} ")

    return after


def _keep(
    network: nn.Module, optimiser: torch.optim.Optimizer, done: int, path: Path
) -> None:
    """Write weights, moments of the optimiser and the number of steps, atomically."""
    kept = {f"model.{k}": v for k, v in network.state_dict().items()}
    kept["done"] = torch.tensor(done)
    for index, state in optimiser.state_dict()["state"].items():
        kept |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    partial = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in kept.items()}, str(partial))
    partial.replace(path)


def _restore(network: nn.Module, optimiser: torch.optim.Optimizer, path: Path) -> int:
    """Load what `_keep` wrote, if there is anything; return the steps done."""
    if not path.exists():
        return 0
    kept = load_file(str(path))
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in kept.items() if k.startswith("model.")}
    )
    states: dict[int, dict[str, Any]] = {}
    for name, value in kept.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": states, "param_groups": groups})
    return int(kept["done"])


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
    sys.stderr.write("\n")


if __name__ == "__main__":
    main()
