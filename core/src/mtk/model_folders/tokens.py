"""The vocabulary of a model folder, read from its tokenizer files as plain data."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError
from mtk.files import open_plain
from mtk.model_folders.reading import companion, read_config, read_json, read_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mtk.adapters import Checkpoint
    from mtk.vocabulary import Vocabulary

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
    """Tokens and rows; None for folders without tokenizer files or token embeddings.

    ``opening`` gives the model's tensors; it is called where there are tokens.
    """
    tokens = tokens_of(path)
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
    from mtk.vocabulary import Vocabulary

    return Vocabulary(tokens=tokens, rows=rows, tensors=tensors)


def _stated_rows(path: Path) -> int | None:
    config = read_config(path)
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            rows: int = part["vocab_size"]
            return rows
    return None


def tokens_of(path: Path) -> Mapping[str, int]:
    """Token -> id, from the first of the usual files that is there; else empty."""
    file = path / "tokenizer.json"
    if companion(path, file):
        with open_plain(file) as handle:
            return _of_file(handle.read(), str(file))
    tokens: dict[str, int] = {}
    if companion(path, path / "vocab.json"):
        tokens |= read_object(path / "vocab.json")
    elif companion(path, path / "vocab.txt"):
        text = (path / "vocab.txt").read_text(encoding="utf-8", errors="replace")
        lines = text.removesuffix("\n").split("\n")
        tokens |= {token: number for number, token in enumerate(lines)}
    if tokens and companion(path, path / "added_tokens.json"):
        tokens |= read_object(path / "added_tokens.json")
    _check(tokens, path)
    return tokens


def _of_file(text: bytes, where: str) -> Mapping[str, int]:
    """Of a tokenizer.json. Most models of a merge have the same one: it is read once."""
    key = sha256(text).hexdigest()
    if key not in _READ:
        tokens = of_tokenizer(read_json(text, owner=where), where)
        if len(_READ) >= _KEPT:
            _READ.clear()
        _READ[key] = tokens
    return _READ[key]


def of_tokenizer(content: Any, where: str) -> dict[str, int]:
    """Token -> id, of what a tokenizer.json says.

    Its vocabulary is a table, or a list of (token, score) in the order of the ids.

    Raises:
        CheckpointError: it is no tokenizer, or gives a token no id.
    """
    try:
        vocab = content["model"]["vocab"]
        if isinstance(vocab, list):
            vocab = {token: number for number, (token, _) in _pairs(vocab)}
        added = {
            item["content"]: item["id"] for item in content.get("added_tokens") or ()
        }
        tokens = {**vocab, **added}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: not a tokenizer: {error!r}") from error
    _check(tokens, where)
    return tokens


def _pairs(vocab: list[Any]) -> enumerate[list[Any]]:
    if not all(isinstance(item, list) for item in vocab):
        raise TypeError("its vocabulary does not list tokens with scores")
    return enumerate(vocab)


def _check(tokens: Mapping[Any, Any], where: object) -> None:
    for token, number in tokens.items():
        if not isinstance(token, str) or type(number) is not int or number < 0:
            raise CheckpointError(
                f"{where}: not a tokenizer: it gives {token!r} the id {number!r}"
            )
