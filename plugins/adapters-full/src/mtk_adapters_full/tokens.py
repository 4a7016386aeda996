"""The vocabulary of a model folder, read from its tokenizer files as plain data."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError
from mtk.vocabulary import Vocabulary
from mtk_adapters_full.reading import companion, read_config, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from mtk.adapters import Checkpoint

# Matrices and biases with one row per token, by the names that libraries give them.
_TOKEN_ROWS = re.compile(
    r"(^|\.)(embed_tokens|tok_embeddings|word_embeddings|wte|shared|embed_in|embed_out"
    r"|token_embedding|token_embeddings|word_embedding|embed_tokens_per_layer"
    r"|lm_head|output|output_layer|predictions|predictions\.decoder|decoder"
    r"|cls\.predictions(\.decoder)?)\.(weight|bias)$"
)
_INPUT = re.compile(
    r"(^|\.)(embed_tokens|tok_embeddings|word_embeddings|wte|shared|embed_in"
    r"|token_embedding|token_embeddings|word_embedding)\.weight$"
)
# Tokens of the tokenizers read last, by hash.
_READ: dict[str, Mapping[str, int]] = {}
_KEPT = 4


def vocabulary_of(path: Path, opening: Callable[[], Checkpoint]) -> Vocabulary | None:
    """Tokens and rows; None for folders without tokenizer files or token embeddings."""
    tokens = _tokens(path)
    if not tokens:
        return None
    opened = opening()
    infos = [opened.info(name) for name in opened.names() if "/" not in name]
    counts = [
        info.shape[0]
        for info in infos
        if len(info.shape) == 2 and _INPUT.search(info.name)
    ]
    if not counts:
        return None
    stated = _stated_rows(path)
    rows = stated if stated in counts else counts[0]
    tensors = tuple(
        info.name
        for info in infos
        if info.shape[:1] == (rows,)
        and len(info.shape) <= 2
        and (_TOKEN_ROWS.search(info.name) or info.role == "head")
    )
    return Vocabulary(tokens=tokens, rows=rows, tensors=tensors)


def _stated_rows(path: Path) -> int | None:
    config = read_config(path)
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            rows: int = part["vocab_size"]
            return rows
    return None


def _tokens(path: Path) -> Mapping[str, int]:
    """Token -> id, from the first of the usual files that is there."""
    tokens: dict[str, int] = {}
    file = path / "tokenizer.json"
    if companion(path, file):
        try:
            return _of_tokenizer(file.read_bytes())
        except (KeyError, TypeError, IndexError, CheckpointError) as error:
            raise CheckpointError(f"{file}: not a tokenizer: {error}") from error
    if companion(path, path / "vocab.json"):
        tokens |= _numbered(read_json(path / "vocab.json"))
    elif companion(path, path / "vocab.txt"):
        text = (path / "vocab.txt").read_text(encoding="utf-8", errors="replace")
        tokens |= _numbered(text.removesuffix("\n").split("\n"))
    if tokens and companion(path, path / "added_tokens.json"):
        tokens |= _numbered(read_json(path / "added_tokens.json"))
    _check(tokens, path)
    return tokens


def _of_tokenizer(text: bytes) -> Mapping[str, int]:
    """Of a tokenizer.json. Most models of a merge have the same one: it is read once."""
    key = sha256(text).hexdigest()
    if key not in _READ:
        found = read_json(text)
        tokens = dict(_numbered(found["model"]["vocab"]))
        tokens |= {i["content"]: i["id"] for i in found.get("added_tokens") or ()}
        _check(tokens, "tokenizer.json")
        if len(_READ) >= _KEPT:
            _READ.clear()
        _READ[key] = tokens
    return _READ[key]


def _check(tokens: Mapping[Any, Any], where: object) -> None:
    for token, number in tokens.items():
        if not isinstance(token, str) or type(number) is not int or number < 0:
            raise CheckpointError(f"{where} gives {token!r} the id {number!r}")


def _numbered(vocab: Any) -> dict[str, int]:
    """Token -> id; lists hold tokens, or tokens with scores, in the order of their ids."""
    if isinstance(vocab, dict):
        return vocab
    items: Iterable[Any] = vocab
    return {
        item[0] if isinstance(item, list) else item: number
        for number, item in enumerate(items)
    }
