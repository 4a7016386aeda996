"""Models as transformers runs them, from a config and tensors that were read here.

No code of a folder runs, and nothing that its config names is opened: the library gets a
cleaned config and the tensors, and never looks into the folder itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, first_line
from mtk.model_folders.cleaning import clean, fetches, offline
from mtk.model_folders.reading import CONFIG
from mtk_adapters_moe import folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def load_model(path: Path, *, causal: bool = False) -> Any:
    """The model in a folder, in evaluation mode, without gradients, in its own dtype.

    Args:
        path: the folder.
        causal: take the language model of its ``model_type``; otherwise the class that
            its config names.

    Raises:
        CheckpointError: there is no such class, or the weights do not fit it.
    """
    raw = clean(folder.read_config(path))
    if fetches(raw):
        raise CheckpointError(
            f"{path / CONFIG} asks for pretrained weights of another model"
        )
    source = folder.open_weights(path)
    weights = {name: source.read(name) for name in source.names()}
    config = _config(path, raw)
    model_class = _causal(path, config) if causal else _named(path, raw)
    try:
        with offline():
            model, found = model_class.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype="auto",
                output_loading_info=True,
            )
    except Exception as error:
        raise CheckpointError(
            f"{path}: transformers could not load it: {first_line(error)}"
        ) from error
    missing = sorted(map(str, found["missing_keys"]))
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors that {model_class.__name__} needs, such "
            f"as {missing[0]!r}"
        )
    return model.eval().requires_grad_(requires_grad=False)


def _config(path: Path, raw: Mapping[str, Any]) -> Any:
    import transformers

    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise CheckpointError(f"{path}: transformers has no model_type {kind!r}")
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(dict(raw))
    except Exception as error:
        raise CheckpointError(
            f"{path / CONFIG}: transformers does not accept it: {first_line(error)}"
        ) from error


def _causal(path: Path, config: Any) -> Any:
    import transformers

    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"{path}: transformers has no language model for {type(config).__name__}"
        )
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _named(path: Path, raw: Mapping[str, Any]) -> Any:
    import transformers

    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (
        isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    ):
        raise CheckpointError(
            f"{path}: transformers has no model class {name!r}, so the model cannot be "
            "run\nCode from model folders is never run"
        )
    return found
