"""The CLIP of the protocol: reading, its evaluation transform, its frozen head.

The head's rows are the pretrained text tower's embeddings of one prompt per class, as
they come: not normalised, without a scale and without a bias.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtk.checkpoint import SafetensorsCheckpoint
from mtk.errors import CheckpointError, UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
FILES = (CONFIG_NAME, WEIGHTS_NAME)
PROMPT = "A photo of a {}"
_TEXTS = 64  # prompts per forward pass of the text tower


def class_name(name: str, names: str) -> str:
    """A class as the prompt writes it: the key itself, or with spaces.

    >>> class_name("hot_dog", "raw"), class_name("hot_dog", "spaces")
    ('hot_dog', 'hot dog')
    """
    return name.replace("_", " ") if names == "spaces" else name


def config_of(folder: Path) -> dict[str, Any]:
    """The model's configuration; one that asks for other models is refused."""
    file = folder / CONFIG_NAME
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        model, text = config["model_cfg"], config["model_cfg"]["text_cfg"]
        vision = model["vision_cfg"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{file} could not be read: {first_line(error)}"
        ) from error
    if any(
        place.get(key)
        for place, key in (
            (text, "hf_model_name"),
            (text, "hf_tokenizer_name"),
            (vision, "timm_model_name"),
        )
    ):
        raise CheckpointError(f"{file} names another model, which is not opened")
    return config


def load(folder: Path) -> Any:
    """The model of a folder, in float32 and evaluation mode, without gradients."""
    import open_clip

    config = config_of(folder)["model_cfg"]
    with torch.random.fork_rng(devices=[]):
        model: Any = open_clip.CLIP(**config)
    source = SafetensorsCheckpoint([folder / WEIGHTS_NAME], str(folder))
    weights = {name: source.read(name) for name in source.names()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: its weights do not fit its configuration: {first_line(error)}"
        ) from error
    return model.float().eval().requires_grad_(False)


def image_size(folder: Path) -> int:
    """Width and height of the model's images."""
    size = config_of(folder)["model_cfg"]["vision_cfg"]["image_size"]
    return int(size[0] if isinstance(size, list) else size)


def whole_numbers(folder: Path) -> Callable[[Any], Tensor]:
    """open_clip's evaluation transform up to whole numbers: image -> uint8 (3, s, s)."""
    import open_clip

    wanted = _preprocessing(folder)
    transform = open_clip.image_transform(
        image_size(folder),
        is_train=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=wanted.get("interpolation"),
        resize_mode=wanted.get("resize_mode"),
    )

    def convert(image: Any) -> Tensor:
        # The transform divides by 255; this takes it back exactly.
        pixels: Tensor = transform(image)
        return (pixels * 255).round().to(torch.uint8)

    return convert


def normaliser(folder: Path) -> Callable[[Tensor], Tensor]:
    """The rest of the transform: uint8 (n, 3, s, s) -> what the model takes."""
    wanted = _preprocessing(folder)
    mean = torch.tensor(wanted["mean"]).view(3, 1, 1)
    std = torch.tensor(wanted["std"]).view(3, 1, 1)

    def normalise(pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32) / 255
        return (x - mean.to(x)) / std.to(x)

    return normalise


def text_embeddings(model: Any, texts: Sequence[str], folder: Path) -> Tensor:
    """What the text tower makes of some prompts, (n, width), as it comes."""
    import open_clip

    config = config_of(folder)["model_cfg"]["text_cfg"]
    tokenizer = open_clip.SimpleTokenizer(context_length=config["context_length"])
    tokens: Tensor = tokenizer(list(texts))
    if int(tokens.max()) >= config["vocab_size"]:
        raise UsageError(f"{folder}: its vocabulary is not CLIP's")
    with torch.no_grad():
        parts = [model.encode_text(part) for part in tokens.split(_TEXTS)]
    return torch.cat(parts)


def head(model: Any, classes: Sequence[str], names: str, folder: Path) -> Tensor:
    """The rows of a head, one per class, (classes, width)."""
    texts = [PROMPT.format(class_name(name, names)) for name in classes]
    return text_embeddings(model, texts, folder)


def check_same(found: Any, base: Any, label: str, *, may_lack: str = "") -> None:
    """Refuse a checkpoint whose tensors are not those of the base, in name and shape.

    Args:
        found: the checkpoint.
        base: the base's.
        label: for messages.
        may_lack: tensors outside this prefix may be absent.
    """
    names, known = set(found.names()), set(base.names())
    lost = sorted(n for n in known - names if not may_lack or n.startswith(may_lack))
    odd = sorted(names - known)
    wrong = sorted(
        n for n in names & known if found.info(n).shape != base.info(n).shape
    )
    for which, what in ((lost, "lacks"), (odd, "has an extra"), (wrong, "has another")):
        if which:
            raise CheckpointError(
                f"{label} {what} {which[0]!r} ({len(which)} in all), so it is no expert of "
                "this base"
            )


def _preprocessing(folder: Path) -> dict[str, Any]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    known = {
        "mean": list(OPENAI_DATASET_MEAN),
        "std": list(OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    given: dict[str, Any] = config_of(folder).get("preprocess_cfg") or {}
    return known | {key: given[key] for key in known if given.get(key)}
