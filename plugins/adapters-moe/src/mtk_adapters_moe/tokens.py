"""The tokens of a model folder, read and extended as plain data; no tokenizer is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, UsageError
from mtk.vocabulary import Vocabulary
from mtk_adapters_moe import folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Files = dict[str, "Path | bytes"]

_INPUT = ("embed_tokens.weight",)
_ROWS = (*_INPUT, "lm_head.weight", "lm_head.bias")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def vocabulary_of(path: Path) -> Vocabulary | None:
    """Tokens and rows; None where the folder has no tokenizer that is read here."""
    tokens = read(path)
    names = sorted(n for n in folder.tensor_names(path) if n.endswith(_ROWS))
    rows = {name: folder.shape_of(path, name)[:1] for name in names}
    inputs = [n for n in names if n.endswith(_INPUT)]
    if not tokens or len(inputs) != 1 or not rows[inputs[0]]:
        return None
    count = rows[inputs[0]]
    same = tuple(name for name in names if rows[name] == count)
    return Vocabulary(tokens=tokens, rows=count[0], tensors=same)


def read(path: Path) -> dict[str, int]:
    """Token -> id, from tokenizer.json or vocab.json; empty where there is neither."""
    tokens: dict[Any, Any] = {}
    if (path / "tokenizer.json").is_file():
        table = folder.read_json(path / "tokenizer.json")
        tokens = _of_table(table, str(path / "tokenizer.json"))
    elif (path / "vocab.json").is_file():
        tokens = folder.read_json(path / "vocab.json")
        if (path / "added_tokens.json").is_file():
            tokens |= folder.read_json(path / "added_tokens.json")
    for token, number in tokens.items():
        if not isinstance(token, str) or type(number) is not int or number < 0:
            raise CheckpointError(f"{path}: its tokenizer gives {token!r} no id")
    return tokens


def _of_table(table: Mapping[str, Any], where: str) -> dict[Any, Any]:
    """Of a ``tokenizer.json``: lists are of (token, score) in the order of the ids."""
    try:
        vocab = table["model"]["vocab"]
        if isinstance(vocab, list):
            vocab = {token: number for number, (token, _) in enumerate(vocab)}
        added = {t["content"]: t["id"] for t in table.get("added_tokens") or ()}
        return {**vocab, **added}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: not a tokenizer: {error!r}") from error


def extend(files: Files, added: Mapping[str, int]) -> None:
    """Append tokens to the tokenizer of a layout.

    The library numbers added tokens one after the other, so theirs must follow the last.
    """
    content = files.get("tokenizer.json")
    if content is None:
        raise UsageError(
            "tokens cannot be added: the donor has no tokenizer.json\n"
            "Choose the tokenizer of one of the models instead"
        )
    table = _json(content, "tokenizer.json")
    known = _of_table(table, "tokenizer.json")
    order = sorted(added.items(), key=lambda item: item[1])
    numbers = sorted({*known.values(), *added.values()})
    follows = len(known) + len(order) == len(numbers) == numbers[-1] + 1
    if not follows or order[0][1] != len(known):
        raise UsageError(
            f"the token {order[0][0]!r} cannot have the id {order[0][1]}: the donor's "
            "tokenizer leaves out ids before it\nChoose another tokenizer"
        )
    flags = dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized", "special"), False
    )
    entries = [{"id": number, "content": text, **flags} for text, number in order]
    table["added_tokens"] = [*(table.get("added_tokens") or ()), *entries]
    files["tokenizer.json"] = folder.dump(table, ordered=False)
    if "tokenizer_config.json" not in files:
        return
    settings = _json(files["tokenizer_config.json"], "tokenizer_config.json")
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        decoder |= {str(entry.pop("id")): entry for entry in map(dict, entries)}
        files["tokenizer_config.json"] = folder.dump(settings, ordered=False)


def take_special_ids(files: Files, theirs: Mapping[str, Path | bytes]) -> None:
    """The ids of first, last and padding token go with the tokenizer."""
    if folder.CONFIG not in theirs:
        return
    source = _text_config(_json(theirs[folder.CONFIG], folder.CONFIG))
    for name in (folder.CONFIG, "generation_config.json"):
        if name not in files:
            continue
        config = _json(files[name], name)
        for part in {id(p): p for p in (config, _text_config(config))}.values():
            for key in _SPECIAL_IDS:
                if part.get(key) is not None and source.get(key) is not None:
                    part[key] = source[key]
        files[name] = folder.dump(config)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _json(content: Path | bytes, name: str) -> dict[str, Any]:
    if isinstance(content, bytes):
        return folder.parse_json(content, name)
    return folder.read_json(content)
