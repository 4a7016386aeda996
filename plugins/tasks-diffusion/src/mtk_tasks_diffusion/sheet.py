"""Contact sheets: images in a grid, as the bytes of a PNG file."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALE = 5  # screen pixels per pixel
GAP = 4  # screen pixels around every image
PAPER = 96  # a grey that is neither ink nor ground


def size(rows: int, columns: int, side: int) -> tuple[int, int]:
    """Height and width in screen pixels."""
    step = side * SCALE + GAP
    return rows * step + GAP, columns * step + GAP


def paint(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay images ``(rows, columns, s, s)`` in -1..1 side by side, as grey pixels."""
    rows, columns, side, _ = images.shape
    canvas = np.full(size(rows, columns, side), PAPER, np.uint8)
    grey = np.round((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    large = grey.repeat(SCALE, axis=2).repeat(SCALE, axis=3)
    for row in range(rows):
        for column in range(columns):
            top, left = size(row, column, side)
            extent = side * SCALE
            canvas[top : top + extent, left : left + extent] = large[row, column]
    return canvas


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode grey pixels ``(height, width)``; the format is ISO/IEC 15948."""
    height, width = pixels.shape
    # Eight bits of grey, no interlacing; each line starts with its filter, 0 for none.
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = np.pad(pixels, ((0, 0), (1, 0))).tobytes()
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
