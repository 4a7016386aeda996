"""What every test run needs: one thread, and a torchvision that can be imported."""

from __future__ import annotations

import torch

from mtk._torchvision import ensure_importable

ensure_importable()
torch.set_num_threads(1)
