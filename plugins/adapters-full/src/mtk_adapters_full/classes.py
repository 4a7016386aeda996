"""Model classes of the libraries: made from configs alone, and run.

No code of a checkpoint runs: the class must be one of the library's own, the config loses
what would make it fetch or run anything (:func:`mtk.model_folders.cleaning.clean`), and
nothing that a config names is opened.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from mtk.errors import CheckpointError, first_line
from mtk.files import belongs
from mtk.model_folders.carrying import OPEN_CLIP_CONFIG, PIPELINE
from mtk.model_folders.cleaning import clean, fetches, offline
from mtk.model_folders.reading import read_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from mtk.adapters import Checkpoint

T = TypeVar("T")
_NO_WEIGHTS = (
    "No pretrained weights loaded",
    "Local config loaded, but no CLIP weights",
)


def family_of(folder: Path, stem: str) -> str:
    """Which library loads a component: by its config, and the name of its weights."""
    config = read_config(folder)
    if stem == "open_clip_model" or (
        not config and belongs(folder, folder / OPEN_CLIP_CONFIG)
    ):
        return "open_clip"
    if "_class_name" in config:
        return "diffusers"
    if "model_type" in config:
        return "transformers"
    return "plain"


def empty_model(folder: Path, family: str) -> nn.Module:
    """The model of a component without its weights, on the meta device.

    Raises:
        CheckpointError: the library is not installed, or has no such class.
    """
    with offline(), torch.device("meta"):
        try:
            return _MAKERS[family](folder)
        except (KeyError, ImportError) as error:
            raise CheckpointError(
                f"{folder}: no model class for it: {first_line(error)}"
            ) from error


def run_model(folder: Path, family: str, source: Checkpoint) -> nn.Module:
    """The model of a component with its weights, in float32, whatever is stored.

    Gradients and statistics are computed in the dtype of the model, and 16 bits are too
    few for them.
    """
    if belongs(folder, folder / "adapter_config.json"):
        raise CheckpointError(
            f"{folder} holds an adapter_config.json, which makes loaders open another "
            "model\nRemove it to run the full model beside it"
        )
    weights = {name: source.read(name) for name in source.names()}
    with offline():
        if family == "transformers":
            return _transformers_with(folder, weights)
        model = _MAKERS[family](folder).float()
        if family == "diffusers":
            weights = current_names(model, weights)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise CheckpointError(
                f"{folder}: its weights do not fit {type(model).__name__}: "
                f"{' '.join(lines[1:2]).strip()[:200]}"
            ) from error
    return model


def transformers_class(folder: Path) -> tuple[type[Any], Any]:
    """The class that the config names, of transformers itself, and the config."""
    import transformers

    raw = clean(read_config(folder))
    kind = raw.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise CheckpointError(f"{folder}: transformers has no model_type {kind!r}")
    if fetches(raw):
        raise CheckpointError(
            f"{folder}/config.json asks for pretrained weights of another model"
        )
    config = transformers.CONFIG_MAPPING[kind].from_dict(raw)
    names = raw.get("architectures") or []
    name = names[0] if isinstance(names, list) and names else ""
    model = getattr(transformers, name, None) if isinstance(name, str) else None
    if model is None:
        model = transformers.MODEL_MAPPING[type(config)]
    if not (
        isinstance(model, type) and issubclass(model, transformers.PreTrainedModel)
    ):
        raise CheckpointError(f"{folder}: {name!r} is no model class of transformers")
    return model, config


def _transformers(folder: Path) -> nn.Module:
    model, config = transformers_class(folder)
    # Not the constructor: it would look for compiled attention kernels.
    made: nn.Module = model._from_config(config, attn_implementation="eager")  # noqa: SLF001
    return made


def _transformers_with(folder: Path, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Loaded by the library, which renames and fuses, from tensors that we have read."""
    model, config = transformers_class(folder)
    made, found = model.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found.get(what):
            odd = min(map(str, found[what]))
            raise CheckpointError(
                f"{folder}: its weights do not fit {model.__name__}: "
                f"{len(found[what])} {what.replace('_', ' ')}, such as {odd}"
            )
    result: nn.Module = made
    return result


def _diffusers(folder: Path) -> nn.Module:
    import diffusers

    config = clean(read_config(folder))
    name = config.get("_class_name")
    model = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(model, type) and issubclass(model, diffusers.ModelMixin)):
        raise CheckpointError(f"{folder}: {name!r} is no model class of diffusers")
    maker: Any = model.from_config
    made: nn.Module = maker(config)
    return made


def current_names(model: Any, tensors: dict[str, T]) -> dict[str, T]:
    """Names of attention layers as diffusers has them today, from those of 2022."""
    rename = getattr(model, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(tensors)
    return tensors


def _open_clip(folder: Path) -> nn.Module:
    import open_clip

    whole = read_config(folder, OPEN_CLIP_CONFIG)
    config = whole.get("model_cfg", whole)
    text, vision = config.get("text_cfg") or {}, config.get("vision_cfg") or {}
    if text.get("hf_model_name") or ":" in str(vision.get("timm_model_name") or ""):
        raise CheckpointError(
            f"{folder}/{OPEN_CLIP_CONFIG} names a model on the Hub, which is not opened"
        )
    with _without_weights():
        made: nn.Module = open_clip.create_model(
            f"local-dir:{folder}",
            load_weights=False,
            pretrained_text=False,
            device=_device(),
        )
    return made


@contextlib.contextmanager
def _without_weights() -> Iterator[None]:
    """Keep back open_clip's warnings that it loaded none: weights come later.

    It warns through the root logger, which prints even where no logging is set up.
    """
    root = logging.getLogger()

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_NO_WEIGHTS)

    # Without a handler, logging would set one up for the rest of the process.
    handler = None if root.handlers else logging.lastResort
    if handler:
        root.addHandler(handler)
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)
        if handler:
            root.removeHandler(handler)


def _device() -> torch.device:
    return torch.get_default_device()


def refuse_pipeline(path: Path) -> None:
    """A pipeline is several models; which of them should run?"""
    if (path / PIPELINE).is_file():
        raise CheckpointError(
            f"{path} is a pipeline of several models; build one of its subfolders"
        )


_MAKERS = {
    "transformers": _transformers,
    "diffusers": _diffusers,
    "open_clip": _open_clip,
}
