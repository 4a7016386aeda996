"""Images as numbers: decoded once, stored as one file per cell and split, and mapped.

A cell's images do not fit into memory together with those of all others, so that tensors
are views of the file, and pages come and go as the system sees fit.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.declare import TensorInfo
from mtk.errors import CheckpointError, UsageError
from mtk.writing import open_output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from mtk_tasks_domainnet.lists import Image

NAME = "images"
_WRITTEN = 64  # images per piece of the file


def stamps(root: Path, images: Sequence[Image]) -> list[tuple[str, int, int]]:
    """Paths, sizes and times of images: what changes when one is replaced.

    Raises:
        UsageError: one is missing.
    """
    found = []
    for image in images:
        try:
            status = (root / image.path).stat()
        except OSError as error:
            raise _unread(root / image.path, error) from error
        found.append((image.path, status.st_size, status.st_mtime_ns))
    return found


def stored(
    root: Path,
    folder: Path,
    label: str,
    images: Sequence[Image],
    *,
    shape: tuple[int, ...],
    dtype: str,
    convert: Callable[[Sequence[Image]], Tensor],
    identity: object = "",
) -> Tensor:
    """The images as one tensor, (n, *shape), made on first use.

    A replaced image, or another transform, makes another file; the old one stays.

    Args:
        root: where the images are.
        folder: where the file is kept.
        label: the beginning of its name.
        images: in order.
        shape: of one converted image.
        dtype: of the file, ``uint8`` or ``float32``.
        convert: some images -> (k, *shape).
        identity: whatever else decides the numbers, such as the transform.
    """
    if not images:
        return torch.empty(0, *shape, dtype=getattr(torch, dtype))
    text = json.dumps([stamps(root, images), shape, dtype, str(identity)])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / f"{label}-{key}.safetensors"
    whole = (len(images), *shape)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        size = torch.Size(shape).numel()
        info = TensorInfo(name=NAME, shape=whole, dtype=dtype)
        with open_output(path, [info], {}) as output:
            for start in range(0, len(images), _WRITTEN):
                part = convert(images[start : start + _WRITTEN])
                output.put(NAME, start * size, part)
    found = SafetensorsCheckpoint([path], label)
    if found.info(NAME).shape != whole:
        raise CheckpointError(f"{path} is damaged; remove it, and it is made again")
    return found.read(NAME)


def opened(root: Path, image: Image) -> object:
    """One image as PIL reads it.

    Raises:
        UsageError: it is missing or damaged.
    """
    import PIL.Image

    try:
        with PIL.Image.open(root / image.path) as picture:
            picture.load()
            return picture.copy()
    except (OSError, SyntaxError, ValueError) as error:
        raise _unread(root / image.path, error) from error


def _unread(file: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{file} could not be read: {error}\n"
        "mtk tracks prepare says which images are missing"
    )
