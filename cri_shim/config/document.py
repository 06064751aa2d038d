"""Parses a YAML document into plain lists and mappings, more strictly than YAML requires. Pure.

Rules, each against a known trap:
- A duplicate key in a mapping is refused. YAML readers silently keep the last one.
- Scalars have the types of YAML 1.2's core schema: only `true` and `false` are booleans, so `off` and `no` are text;
  `12:30` is not a number in base 60; and a number with a leading 0, like the mode 0660, is text.
- Tags, anchors and aliases are refused. Aliases could expand a small file to gigabytes.
- Size and depth are bounded.
"""

from __future__ import annotations

import re

import yaml

from cri_shim.errors import ConfigError

MAX_BYTES = 256 * 1024
"""About ten times the size of the default file with its comments."""

MAX_DEPTH = 32
"""The deepest key of the configuration is at level 6."""

_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = frozenset(
    _TAG + kind
    for kind in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "map", "seq")
)
"""Tags that PyYAML assigns to untagged nodes. Any other tag was written in the file."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]+")


def parse_document(text: str, *, name: str) -> object:
    """Parse YAML text. An empty document gives None.

    Raises:
        ConfigError: with `name`, line and column.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{name}: has more than {MAX_BYTES} bytes")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except RecursionError:
        # PyYAML composes recursively, so deep nesting ends in this before `build` can check the depth.
        raise ConfigError(f"{name}: is nested deeper than {MAX_DEPTH} levels") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(
            f"{name}: {_place(mark)}is not YAML: {error.problem or error.context}"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: is not YAML: {' '.join(str(error).split())}") from None
    return None if node is None else _Builder(name).build(node, 1)


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


class _Builder:
    """Converts PyYAML's graph of nodes into plain values."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: set[int] = set()

    def build(self, node: yaml.Node, depth: int) -> object:
        if id(node) in self._seen:
            raise self._error(node, "aliases (*name) are not supported: repeat the value")
        self._seen.add(id(node))
        if depth > MAX_DEPTH:
            raise self._error(node, f"is nested deeper than {MAX_DEPTH} levels")
        if node.tag not in _KNOWN_TAGS:
            raise self._error(node, f"tags ({node.tag}) are not supported")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, depth + 1) for item in node.value]
        # Only plain scalars have no style. Quoted and block scalars are text, also if they look like a number.
        quoted = isinstance(node, yaml.ScalarNode) and bool(node.style)
        return str(node.value) if quoted else _typed(str(node.value))

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be a word")
            key = str(key_node.value)
            if key in result:
                raise self._error(key_node, f"duplicate key {key!r} in this mapping")
            result[key] = self.build(value_node, depth + 1)
        return result

    def _error(self, node: yaml.Node, what: str) -> ConfigError:
        return ConfigError(f"{self._name}: {_place(node.start_mark)}{what}")


def _typed(word: str) -> object:
    if word in ("", "~", "null"):
        return None
    if word in ("true", "false"):
        return word == "true"
    if _INTEGER.fullmatch(word):
        return int(word)
    if _DECIMAL.fullmatch(word):
        return float(word)
    return word
