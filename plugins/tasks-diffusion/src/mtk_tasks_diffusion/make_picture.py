"""Make the picture of the docs page: ``python -m mtk_tasks_diffusion.make_picture OUT.png``.

Six contact sheets, two side by side: real images and the base; each expert in the row
of its style and the multitask adapter; the average of the experts and task arithmetic.
Needs the plugins mtk-adapters-lora and mtk-methods-weights beside this one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import mtk
from mtk.loading import resolve
from mtk.models import default_cache
from mtk_tasks_diffusion import data, sheet
from mtk_tasks_diffusion.cells import STYLES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from mtk_tasks_diffusion.track import DigitsDiffusion

    Images = NDArray[np.float32]

_SCALE = 0.5  # of task arithmetic; chosen before looking


def picture(cache: Path) -> bytes:
    """Make or find the models of seed 0, merge them, and draw."""
    # Through `resolve`, because it prepares the import of diffusers.
    kind = resolve("mtk_tasks_diffusion.track:DigitsDiffusion")
    track: DigitsDiffusion = kind(cache=cache, seed=0, options={})
    made = track.prepare(_show)
    base, experts = made["base"], list(made["experts"])

    def drawn(method: str, models: list[Path], **params: float) -> Images:
        merged = mtk.merge(method, base=base, experts=models, params=params)
        unet: nn.Module = track.build(base)
        unet.load_state_dict(dict(merged.tensors))
        return track.first_images(unet)

    own = [drawn("task_arithmetic", [path], scale=1.0) for path in experts]
    sheets = [
        _real(),
        track.first_images(track.build(base)),
        np.stack([images[row] for row, images in enumerate(own)]),
        drawn("task_arithmetic", [made["multitask"]], scale=1.0),
        drawn("average", experts),
        drawn("task_arithmetic", experts, scale=_SCALE),
    ]
    panes = [
        np.pad(sheet.paint(images), sheet.GAP, constant_values=sheet.PAPER)
        for images in sheets
    ]
    rows = [np.hstack(panes[at : at + 2]) for at in range(0, len(panes), 2)]
    return sheet.png(np.vstack(rows))


def _real() -> Images:
    """The first real test image of every digit in every style, ``(5, 10, s, s)``."""
    rows = []
    for style in STYLES:
        pixels, labels, _ = data.images(style, tuple(range(10)), "test")
        rows.append(pixels[[int(np.argmax(labels == digit)) for digit in range(10)]])
    return np.stack(rows)


def _show(message: str, fraction: float) -> None:
    sys.stderr.write(f"{round(100 * fraction):3d} % {message}\n")


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache() / "picture")
    given = parser.parse_args()
    given.out.write_bytes(picture(given.cache))


if __name__ == "__main__":
    main()
