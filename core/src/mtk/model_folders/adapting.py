"""Configs and tokenizer files that fit a merged model."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError
from mtk.model_folders.carrying import dump, is_tokenizer_file
from mtk.model_folders.reading import CONFIG, read_object
from mtk.model_folders.tokens import of_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from mtk.adapters import Changes, Layout

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Lists with one entry per layer, also where there is only one layer.
_PER_LAYER = ("layer_types", "mlp_layer_types")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SPECIAL_TOKEN = re.compile(r"<[^<>\s]+>|\[[A-Z_0-9]+\]")

Files = dict[str, "Path | bytes"]


def adapted(layout: Layout, changes: Changes) -> Layout:
    """The layout whose config and tokenizer say what changed.

    Raises:
        CheckpointError: this family's config cannot say it.
    """
    files: Files = dict(layout.files)
    if changes.tokenizer is not None:
        _require(layout, "another tokenizer")
        files = _other_tokenizer(files, changes.tokenizer.files)
    if changes.added_tokens:
        _require(layout, "added tokens")
        _add_tokens(files, changes.added_tokens)
    for what, value, change in (
        ("another number of embedding rows", changes.rows, _rows),
        ("another number of layers", changes.layers, _layers),
        ("tied or untied embeddings", changes.tied, _tied),
    ):
        if value is not None:
            _require(layout, what)
            _edit(files, CONFIG, partial(change, value))
    if changes.dtype is not None and layout.family == "transformers":
        for name in [n for n in files if n.rpartition("/")[2] == CONFIG]:
            _edit(files, name, partial(_dtype, changes.dtype))
    return replace(layout, files=files)


def _require(layout: Layout, what: str) -> None:
    if layout.family != "transformers" or CONFIG not in layout.files:
        raise CheckpointError(
            f"a {layout.family} model cannot be given {what}\n"
            "Only folders with a config.json of transformers say how to load the result"
        )


def _edit(files: Files, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    config = read_object(files[name], owner=name)
    before = dump(config)
    change(config)
    if dump(config) != before:
        files[name] = dump(config)


def _nested(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config, and those of the models inside it."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config"):
            yield from _nested(value)


def _text(config: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any] | None:
    """The config of the language model: the outermost one that has one of the keys."""
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, dict) and any(
            isinstance(part.get(key), int) for key in keys
        ):
            return part
    return None


def _dtype(dtype: str, config: dict[str, Any]) -> None:
    for part in _nested(config):
        for key in ("dtype", "torch_dtype"):
            if part.get(key) is not None:
                part[key] = dtype
    if "dtype" not in config:  # read by every release, unlike the newer name
        config["torch_dtype"] = dtype


def _rows(rows: int, config: dict[str, Any]) -> None:
    main = _text(config, ("vocab_size",))
    if main is None:
        raise CheckpointError(
            f"{CONFIG} has no vocab_size, so a vocabulary of {rows} cannot be written"
        )
    old = main["vocab_size"]
    for part in _nested(config):
        if part.get("vocab_size") == old:
            part["vocab_size"] = rows


def _tied(tied: int, config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = bool(tied)
    for part in _nested(config):
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = bool(tied)


def _layers(layers: int, config: dict[str, Any]) -> None:
    main = _text(config, _COUNTS)
    if main is None or config.get("is_encoder_decoder"):
        kind = config.get("model_type")
        raise CheckpointError(
            f"layers of a {kind} model cannot be stacked: its config does not count the "
            "layers of one decoder"
        )
    key = next(key for key in _COUNTS if isinstance(main.get(key), int))
    old, main[key] = main[key], layers
    for name, value in main.items():
        if not isinstance(value, list) or len(value) != old or old == layers:
            continue
        if old > 1 or name in _PER_LAYER:
            if any(item != value[0] for item in value):
                raise CheckpointError(
                    f"{CONFIG}: {name} differs from layer to layer, so {old} layers "
                    f"cannot become {layers}"
                )
            main[name] = [value[0]] * layers


def _other_tokenizer(files: Files, other: Mapping[str, Path | bytes]) -> Files:
    """The other's tokenizer files, and its ids of the special tokens."""
    taken = {name: file for name, file in other.items() if is_tokenizer_file(name)}
    if not taken:
        raise CheckpointError("the model that should give its tokenizer has none")
    kept = {name: file for name, file in files.items() if not is_tokenizer_file(name)}
    result = kept | taken
    if CONFIG in other:
        source = _text(read_object(other[CONFIG], owner=CONFIG), _SPECIAL_IDS)
        for name in (CONFIG, "generation_config.json"):
            if source and name in result:
                _edit(result, name, partial(_special_ids, source))
    return result


def _special_ids(source: Mapping[str, Any], config: dict[str, Any]) -> None:
    for part in _nested(config):
        for key in _SPECIAL_IDS:
            if part.get(key) is not None and source.get(key) is not None:
                part[key] = source[key]


def _add_tokens(files: Files, added: Mapping[str, int]) -> None:
    order = sorted(added.items(), key=lambda pair: pair[1])
    if "tokenizer.json" in files:
        _edit(files, "tokenizer.json", partial(_extend, order))
    elif "added_tokens.json" in files:
        _edit(files, "added_tokens.json", lambda found: found.update(order))
    elif any(is_tokenizer_file(name) for name in files):
        files["added_tokens.json"] = dump(dict(order))
    else:
        raise CheckpointError(
            "tokens cannot be added: the model has no tokenizer files"
        )
    if "tokenizer_config.json" in files:
        _edit(files, "tokenizer_config.json", partial(_announce, order))


def _entry(token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = bool(_SPECIAL_TOKEN.fullmatch(token))
    return {"content": token, **flags, "special": special}


def _announce(order: list[tuple[str, int]], config: dict[str, Any]) -> None:
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        decoder.update({str(number): _entry(token) for token, number in order})


def _extend(order: list[tuple[str, int]], tokenizer: dict[str, Any]) -> None:
    """Append added tokens, and give those an entry in the vocabulary that need one.

    The library numbers added tokens one after the other, whatever ids are written, unless
    its vocabulary has them.
    """
    names: dict[int, str] = {}
    for token, number in [*of_tokenizer(tokenizer, "tokenizer.json").items(), *order]:
        if names.setdefault(number, token) != token:
            raise CheckpointError(
                f"tokens cannot be added: the tokenizer would call {names[number]!r} and "
                f"{token!r} by one id, {number}\nChoose another tokenizer"
            )
    known = tokenizer.get("added_tokens") or []
    tokenizer["added_tokens"] = known
    vocab = tokenizer["model"]["vocab"]
    known.extend({"id": number, **_entry(token)} for token, number in order)
    expected = len(vocab)
    numbers: dict[str, int] = {item["content"]: item["id"] for item in known}
    inside = vocab if isinstance(vocab, dict) else {pair[0] for pair in vocab}
    for token, number in sorted(numbers.items(), key=lambda pair: pair[1]):
        if token in inside:
            continue
        if number != expected and isinstance(vocab, dict):
            vocab |= {t: n for t, n in numbers.items() if t not in vocab}
            return
        if number != expected:
            raise CheckpointError(
                f"the token {token!r} cannot have the id {number}: the tokenizer would "
                f"call it {expected}"
            )
        expected += 1
