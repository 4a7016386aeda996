"""YAML as plain values that know their line. Bounded in size, depth and number of nodes.

Only text, numbers, truth values, null, lists and mappings exist; a tag that asks for
anything else is refused, as is a key that stands twice in one mapping. Aliases and merge
keys work as usual, but count with everything they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from mtk.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_BYTES = 1_000_000
# Recipes have some hundreds of nodes; PyYAML makes about ten thousand in a second.
MOST_NODES = 20_000
MOST_DEPTH = 24
_TAG = "tag:yaml.org,2002:"
_ALLOWED = {
    "scalar": {_TAG + name for name in ("null", "bool", "int", "float", "str")},
    "sequence": {_TAG + "seq"},
    "mapping": {_TAG + "map"},
}
_MERGE = _TAG + "merge"


@dataclass(frozen=True, slots=True)
class Item:
    """A value and its place, ``config.yml, line 4``."""

    value: Any
    where: str

    @property
    def is_list(self) -> bool:
        """Whether the value is a list of items."""
        return isinstance(self.value, list)

    @property
    def is_mapping(self) -> bool:
        """Whether the value is a mapping from words to items."""
        return isinstance(self.value, dict)


def read_documents(path: Path) -> list[Item]:
    """Every document of a YAML file that is not empty.

    Raises:
        UsageError: no plain file, too large, or not YAML.
    """
    text = _text(path)
    documents = []
    try:
        loader = _Loader(text, path.name)
        while loader.check_node():
            documents.append(_item(loader, loader.get_node()))
    except yaml.YAMLError as error:
        raise UsageError(_described(path, error)) from None
    found = [document for document in documents if document.value is not None]
    if not found:
        raise UsageError(f"{path} is empty; a recipe has at least merge_method")
    return found


def _text(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} has more than {MOST_BYTES:,} bytes: not a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason})") from None


def _described(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path.name}, line {mark.line + 1}" if mark else path.name
    problem = getattr(error, "problem", None) or getattr(error, "reason", None)
    return f"{where}: not valid YAML: {problem or 'unreadable'}"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Composes nodes, and refuses too many or too deep ones while it does."""

    def __init__(self, stream: str, file: str) -> None:
        super().__init__(stream)
        self.file = file
        self.made, self.depth = 0, 0
        # Node -> nodes and levels it stands for, aliases written out.
        self.spans: dict[int, tuple[int, int]] = {}
        self.kept: list[yaml.Node] = []

    def where(self, node: yaml.Node) -> str:
        """The place of a node."""
        return f"{self.file}, line {node.start_mark.line + 1}"

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose one node with everything in it."""
        self.made, self.depth = self.made + 1, self.depth + 1
        alias = self.check_event(yaml.AliasEvent)
        where = f"{self.file}, line {self.peek_event().start_mark.line + 1}"
        if self.made > MOST_NODES or self.depth > MOST_DEPTH:
            raise UsageError(f"{where}: {_TOO_MUCH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not alias:
            self.spans[id(node)] = self._span(node)
            self.kept.append(node)  # so that no other node gets its id
        elif id(node) not in self.spans:
            raise UsageError(f"{where}: an alias inside of what it stands for")
        return node

    def _span(self, node: yaml.Node) -> tuple[int, int]:
        count, depth = 1, 0
        for child in _children(node):
            size, levels = self.spans[id(child)]
            count, depth = count + size, max(depth, levels)
        if count > MOST_NODES or depth + 1 > MOST_DEPTH:
            raise UsageError(f"{self.where(node)}: {_TOO_MUCH}")
        return count, depth + 1


_TOO_MUCH = (
    f"more than {MOST_NODES:,} values or {MOST_DEPTH} levels, aliases written out: "
    "not a recipe"
)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value


def _item(loader: _Loader, node: yaml.Node, where: str = "") -> Item:
    where = where or loader.where(node)
    _check_tag(loader, node)
    if isinstance(node, yaml.SequenceNode):
        return Item([_item(loader, child) for child in node.value], where)
    if isinstance(node, yaml.MappingNode):
        return Item(_mapping(loader, node), where)
    return Item(_scalar(loader, node), where)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Item]:
    own: dict[str, Item] = {}
    merged: dict[str, Item] = {}
    for key, value in node.value:
        where = loader.where(key)
        if key.tag == _MERGE:
            # Of several mappings merged into one, the first one wins.
            for word, item in _merged(loader, value, where).items():
                merged.setdefault(word, item)
            continue
        name: Any = _scalar(loader, key) if isinstance(key, yaml.ScalarNode) else None
        if not isinstance(name, str):
            raise UsageError(f"{where}: a key must be a word; write it in quotes")
        if name in own:
            raise UsageError(
                f"{where}: the key {name!r} stands twice in one place\n"
                f"First: {own[name].where}"
            )
        own[name] = _item(loader, value, where)
    return merged | own


def _merged(loader: _Loader, node: yaml.Node, where: str) -> dict[str, Item]:
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    found: dict[str, Item] = {}
    for part in parts:
        if not isinstance(part, yaml.MappingNode):
            raise UsageError(f"{where}: '<<' takes a mapping, or a list of mappings")
        for name, item in _mapping(loader, part).items():
            found.setdefault(name, item)
    return found


def _check_tag(loader: _Loader, node: yaml.Node) -> None:
    if node.tag not in _ALLOWED[node.id]:
        kind = node.tag.rpartition(":")[2]
        hint = "\nWrite it in quotes if it is meant as text" * (node.id == "scalar")
        raise UsageError(
            f"{loader.where(node)}: a value of kind {kind!r} is not allowed here{hint}"
        )


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    _check_tag(loader, node)
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError, OverflowError):
        raise UsageError(
            f"{loader.where(node)}: {node.value[:40]!r} is no value of kind "
            f"{node.tag.rpartition(':')[2]}"
        ) from None
