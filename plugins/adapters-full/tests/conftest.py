"""Models of real architectures, small and random, saved by their own libraries."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

import mtk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8,
    },
    "text_cfg": {
        "context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1,
    },
}  # fmt: skip


@pytest.fixture
def quiet() -> Iterator[None]:
    """Libraries beneath us warn of things that are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _average(*, experts: list[torch.Tensor]) -> torch.Tensor:
    return sum(experts[1:], experts[0]) / len(experts)


@pytest.fixture(scope="session")
def average() -> mtk.Method:
    return mtk.Method(name="average", target=_average, summary="The plain average")


@pytest.fixture(scope="session")
def randomise() -> Callable[[Any, int], Any]:
    def change(model: Any, seed: int) -> Any:
        """No two tensors alike, so that a tensor can be found by its values."""
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=g) * 0.05)
        return model.eval()

    return change


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An open_clip folder, and the model it was saved from."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval()
    folder = tmp_path_factory.mktemp("clip")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    text = {"model_cfg": CONFIG, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(text))
    return folder, model
