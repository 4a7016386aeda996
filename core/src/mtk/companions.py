"""What stands beside the weights of a model folder, read as plain data and compared.

Code and chat templates are looked at as bytes: nothing is imported, rendered or fetched.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtk.errors import CheckpointError, first_line
from mtk.files import belongs, open_plain
from mtk.folders import MANIFEST, check_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mtk.opening import Input

# A config or tokenizer config takes some hundred kB; tokenizers are not read here.
MOST_BYTES = 16 * 2**20
MOST_NAMES = 5
_CODE = (".py", ".pyc", ".so", ".dll", ".sh", ".ipynb")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib", ".h5", ".msgpack")
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # fmt: skip
# Where a config came from and who wrote it, not what the model is.
_UNTOLD = {"transformers_version", "_name_or_path", "_diffusers_version"}


@dataclass(slots=True, kw_only=True)
class Companions:
    """What a folder says about its model, apart from its weights.

    Args:
        configs: file -> flat key -> value.
        template: hash of its chat templates; empty without one.
        special: special token -> its text, as the tokenizer's config says.
        licence: see :func:`licence_of`.
        found: check -> messages about this folder alone.
    """

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    template: str = ""
    special: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    found: list[tuple[str, str]] = field(default_factory=list)


def beside(
    base: Input | None, inputs: Sequence[Input]
) -> Iterator[tuple[str, str, str]]:
    """Label, check and message of everything odd beside the weights of some models."""
    folder = None if base is None else _folder(base)
    start = None if folder is None else read_companions(folder)
    tokens = None if base is None else base.vocabulary()
    for item in inputs:
        folder = _folder(item)
        if folder is None:
            continue
        seen = read_companions(folder)
        found = list(seen.found)
        if start is not None and item.checkpoint.kind != "lora":
            found += differences(start, seen)
            theirs = item.vocabulary() if tokens is not None else None
            if tokens is not None and theirs is not None:
                found += token_differences(tokens.tokens, theirs.tokens)
        for check, message in found:
            yield item.checkpoint.label, check, message


def licence(item: Input) -> str:
    """The licence that a model states; empty if it states none."""
    folder = _folder(item)
    return "" if folder is None else licence_of(folder)


def _folder(item: Input) -> Path | None:
    there = item.path is not None and item.path.is_dir()
    return item.path if there else None


def read_companions(folder: Path) -> Companions:
    """Look at everything beside the weights."""
    seen = Companions()
    for name in _CONFIGS:
        value = _json(folder, name, seen)
        if value is not None:
            seen.configs[name] = dict(_flat(value))
    tokenizer = _json(folder, "tokenizer_config.json", seen) or {}
    for key in _SPECIAL:
        token = tokenizer.get(key)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            seen.special[key] = token
    seen.template = _template(folder, tokenizer, seen)
    seen.licence = licence_of(folder)
    seen.found += _odd_files(folder)
    for name, table in {**seen.configs, "tokenizer_config.json": tokenizer}.items():
        if any(
            key.partition(".")[0] == "auto_map" or ".auto_map" in key for key in table
        ):
            seen.found.append(
                ("code", f"{name} names code to run (auto_map); mtk does not")
            )
    try:
        check_manifest(folder, contents=True)
    except CheckpointError as error:
        seen.found.append(("manifest", first_line(error)))
    return seen


def differences(base: Companions, other: Companions) -> Iterator[tuple[str, str]]:
    """In what a folder differs from its base's: check and message."""
    for name in _CONFIGS[:2]:
        if name in base.configs and name in other.configs:
            changed = _changed(base.configs[name], other.configs[name])
            if changed:
                yield "config", f"{name} differs from the base's: {_some(changed)}"
    special = _changed(base.special, other.special)
    if special and base.special and other.special:
        yield "tokens", f"special tokens differ from the base's: {_some(special)}"
    if other.template != base.template and other.template:
        what = (
            "another chat template than" if base.template else "a chat template, unlike"
        )
        yield "template", f"has {what} the base; it is never rendered here"
    if base.licence and other.licence.lower() != base.licence.lower():
        stated = repr(other.licence) if other.licence else "not stated"
        yield "licence", f"the licence is {stated}, the base's {base.licence!r}"


def token_differences(
    base: Mapping[str, int], other: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """In what a tokenizer differs from the base's."""
    moved = [token for token in base if other.get(token, base[token]) != base[token]]
    if moved:
        yield (
            "tokens",
            f"{len(moved)} tokens have other ids than in the base: {_some(map(repr, moved))}",
        )
    for what, some, rest in (("added to", other, base), ("missing from", base, other)):
        odd = [token for token in some if token not in rest]
        if odd:
            yield (
                "tokens",
                f"{len(odd)} tokens are {what} the base's: {_some(map(repr, odd))}",
            )


def _json(folder: Path, name: str, seen: Companions) -> dict[str, Any] | None:
    """A JSON object of the folder; what is wrong with it is a finding."""
    file = folder / name
    if not (file.exists() or file.is_symlink()):
        return None
    if not belongs(folder, file):
        seen.found.append(("files", f"{name} is no plain file of the folder"))
        return None
    try:
        value = json.loads(_bytes(file))
    except (OSError, ValueError, RecursionError) as error:
        seen.found.append(
            ("files", f"{name} cannot be read: {first_line(error)[:200]}")
        )
        return None
    if not isinstance(value, dict):
        seen.found.append(("files", f"{name} holds no JSON object"))
        return None
    return value


def _bytes(file: Path) -> bytes:
    with open_plain(file) as handle:
        content = handle.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
    return content


def _flat(
    value: Mapping[str, Any], start: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner and depth < 8:
            yield from _flat(inner, f"{start}{key}.", depth + 1)
        elif key not in _UNTOLD:
            yield f"{start}{key}", inner


def _changed(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [
        f"{_printable(key)} is {_short(other, key)}, was {_short(base, key)}"
        for key in sorted({*base, *other})
        if key not in base or key not in other or base[key] != other[key]
    ]


def _printable(key: str) -> str:
    return json.dumps(key)[1:-1]


def _short(table: Mapping[str, Any], key: str) -> str:
    if key not in table:
        return "absent"
    text = json.dumps(table[key], default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _some(items: Iterable[str]) -> str:
    found = [item if len(item) <= 200 else f"{item[:197]}..." for item in items]
    more = len(found) - MOST_NAMES
    return "; ".join(found[:MOST_NAMES]) + (f"; and {more} more" if more > 0 else "")


def _template(folder: Path, tokenizer: Mapping[str, Any], seen: Companions) -> str:
    """One hash over everything that can be a chat template."""
    parts = []
    if tokenizer.get("chat_template"):
        parts.append(json.dumps(tokenizer["chat_template"], sort_keys=True).encode())
    inner = folder / "additional_chat_templates"
    files = [folder / "chat_template.jinja", folder / "chat_template.json"]
    files += sorted(inner.glob("*.jinja")) if inner.is_dir() else []
    for file in files:
        if not belongs(folder, file):
            continue
        try:
            parts.append(_bytes(file))
        except (OSError, ValueError) as error:
            seen.found.append(("files", f"{file.name}: {first_line(error)}"))
    return hashlib.sha256(b"\0".join(parts)).hexdigest() if parts else ""


def licence_of(folder: Path) -> str:
    """The ``license`` of the card's head, or else the names of licence files."""
    return "".join(letter for letter in _licence(folder) if letter.isprintable())


def _licence(folder: Path) -> str:
    card = folder / "README.md"
    if belongs(folder, card):
        try:
            lines = _bytes(card).decode(errors="replace").splitlines()
        except (OSError, ValueError):
            lines = []
        if lines[:1] == ["---"]:
            for line in lines[1:]:
                if line == "---":
                    break
                key, _, value = line.partition(":")
                if key == "license" and value.strip():
                    return value.strip().strip("\"'")[:80]
    names = sorted(
        file.name
        for pattern in ("LICENSE*", "LICENCE*")
        for file in folder.glob(pattern)
    )
    return ", ".join(names)


def _odd_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Code, pickles and links that lead out of the folder; one level deep."""
    files = [*folder.iterdir(), *folder.glob("*/*")]
    names = {file: file.relative_to(folder).as_posix() for file in sorted(files)}
    for check, suffixes, what in (
        ("code", _CODE, "holds code, which mtk neither runs nor carries over"),
        ("pickle", _PICKLES, "holds files that can run code when they are loaded"),
    ):
        found = [
            name for file, name in names.items() if file.suffix.lower() in suffixes
        ]
        if found:
            yield check, f"{what}: {_some(map(repr, found))}"
    out = [
        name
        for file, name in names.items()
        if file.name != MANIFEST and not file.is_dir() and not belongs(folder, file)
    ]
    if out:
        yield "files", f"no plain files of the folder: {_some(map(repr, out))}"
