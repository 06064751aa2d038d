"""Decodes a tree of plain values into a `Config`, and reports every mistake in it. Pure.

Rules:
- A mistake becomes a `Problem`, and the key gets its default. So decoding continues, and the rules between keys can be
  checked. A configuration with problems must not be used.
- A value of another type than its key's is refused; nothing is converted silently.
- An empty section (`tls:` with all its keys commented out) has its defaults.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import inspect as types

from cri_shim.config.model import Config
from cri_shim.config.schema import Bounds, allowed, choices_of, codec_of, keys_of, some_of
from cri_shim.config.values import describe_kind, parse_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Place = tuple[str | int, ...]
"""The place of a value: keys, and positions in lists."""

AnySection = TypeVar("AnySection", bound=msgspec.Struct)

MAX_SHOWN = 80
"""The longest value shown whole in a message."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: its place, and a text with what is wrong and what is allowed."""

    place: Place
    message: str

    @property
    def path(self) -> str:
        """The place as text: `listen[1]`, `runtime.handlers.runc.path`."""
        return format_place(self.place)


def format_place(place: Place) -> str:
    """The place as text: `a.b[2].c`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def show(value: object) -> str:
    """A value for a message: as JSON, on one line, truncated."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def suggest(word: str, words: Iterable[str]) -> str:
    """`did you mean X?` if a similar word exists, else the allowed words."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "allowed: " + ", ".join(words)


def decode(tree: object) -> tuple[Config, list[Problem]]:
    """Decode a tree as `model` defines it. `rules` checks the rules between keys.

    Returns the configuration and the problems found; with a problem its key has the default.
    """
    reader = _Reader()
    config = reader.section(tree, Config, ())
    return config or Config(), reader.problems


class _Refused(Exception):  # noqa: N818 - it carries no message: the problem is recorded already
    """A value was refused; its problem is recorded."""


class _Reader:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def refuse(self, place: Place, wrong: str, value: object, may: str) -> _Refused:
        self.problems.append(Problem(place, f"{wrong} ({show(value)}), allowed: {may}"))
        return _Refused()

    def section(self, value: object, cls: type[AnySection], place: Place) -> AnySection | None:
        """Decode a section; None if a key without a default is missing or malformed."""
        keys = {key.name: key for key in keys_of(cls)}
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.refuse(
                place, describe_kind(value), value, "a mapping with the keys " + ", ".join(keys)
            )
            value = {}
        for name in value:
            if name not in keys:
                self.problems.append(Problem((*place, name), f"unknown key, {suggest(name, keys)}"))
        read: dict[str, object] = {}
        complete = True
        for name, key in keys.items():
            try:
                if name in value:
                    read[key.attribute] = self.value(
                        value[name], key.kind, key.bounds, (*place, name)
                    )
                elif key.required:
                    self.problems.append(
                        Problem(
                            (*place, name), f"is required, allowed: {allowed(key.kind, key.bounds)}"
                        )
                    )
                    complete = False
            except _Refused:
                complete = complete and not key.required
        return cls(**read) if complete else None

    def value(self, value: object, kind: types.Type, bounds: Bounds, place: Place) -> object:
        """Decode one value.

        Raises:
            _Refused: the value is malformed; its problem is recorded.
        """
        match kind:
            case types.UnionType():
                if value is None or value == "":
                    return None
                return self.value(value, some_of(kind), bounds, place)
            case types.StructType():
                section = self.section(value, kind.cls, place)
                if section is None:
                    raise _Refused
                return section
            case types.DictType():
                return self.mapping(value, kind, bounds, place)
            case types.VarTupleType():
                return self.sequence(value, kind, bounds, place)
            case _:
                return self.leaf(value, kind, bounds, place)

    def leaf(self, value: object, kind: types.Type, bounds: Bounds, place: Place) -> object:
        try:
            result = _leaf(value, kind)
        except ValueError as error:
            raise self.refuse(place, str(error), value, allowed(kind, bounds)) from None
        if isinstance(result, int | float) and not isinstance(result, bool):
            if bounds.minimum is not None and result < bounds.minimum:
                raise self.refuse(place, "is too small", value, allowed(kind, bounds))
            if bounds.maximum is not None and result > bounds.maximum:
                raise self.refuse(place, "is too large", value, allowed(kind, bounds))
        return result

    def sequence(
        self, value: object, kind: types.VarTupleType, bounds: Bounds, place: Place
    ) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise self.refuse(place, describe_kind(value), value, allowed(kind, bounds))
        self.count(len(value), kind, bounds, place)
        items = []
        for index, item in enumerate(value):
            try:
                items.append(self.value(item, kind.item_type, Bounds(), (*place, index)))
            except _Refused:
                continue
        for index, item in enumerate(items):
            if item in items[:index]:
                self.problems.append(Problem(place, f"names {show(str(item))} twice"))
        return tuple(items)

    def mapping(
        self, value: object, kind: types.DictType, bounds: Bounds, place: Place
    ) -> Mapping[object, object]:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.refuse(place, describe_kind(value), value, allowed(kind, bounds))
        # `NAME: null` removes an entry of an earlier file or of the built-in defaults.
        entries = {name: entry for name, entry in value.items() if entry is not None}
        self.count(len(entries), kind, bounds, place)
        result = {}
        for name, entry in entries.items():
            try:
                key = self.leaf(name, kind.key_type, Bounds(), (*place, name))
                result[key] = self.value(entry, kind.value_type, Bounds(), (*place, name))
            except _Refused:
                continue
        return result

    def count(self, count: int, kind: types.Type, bounds: Bounds, place: Place) -> None:
        too_few = bounds.min_items is not None and count < bounds.min_items
        if too_few or (bounds.max_items is not None and count > bounds.max_items):
            raise self.refuse(place, "has the wrong number of items", count, allowed(kind, bounds))


def _leaf(value: object, kind: types.Type) -> object:
    """Decode a scalar. Raises ValueError with what is wrong, as a phrase behind the key's name."""
    codec = codec_of(kind)
    if codec is not None:
        return codec.parse(value)
    match kind:
        case types.EnumType():
            word = parse_text(value)
            if word not in choices_of(kind):
                raise ValueError("is an unknown word")
            return kind.cls(word)
        case types.BoolType():
            if not isinstance(value, bool):
                raise ValueError(describe_kind(value))
            return value
        case types.IntType():
            if type(value) is not int:
                raise ValueError("has a fraction" if type(value) is float else describe_kind(value))
            return value
        case _:
            return parse_text(value)


def raw_type(section: type[msgspec.Struct], path: list[str]) -> tuple[Place, types.Type | None]:
    """Resolve a dotted path: the keys on the way, and the type of the last one (None: no such key).

    In a mapping of plain values the rest of the path is one key, since names of sysctls contain dots.
    """
    kind: types.Type | None = None
    keys = {key.name: key for key in keys_of(section)}
    place: list[str] = []
    left = list(path)
    while left:
        name = left.pop(0)
        place.append(name)
        if name not in keys:
            return (*place, *left), None
        key = keys[name]
        kind = key.kind
        if isinstance(kind, types.DictType) and left:
            entry = key.entry_section
            if entry is None:
                return (*place, ".".join(left)), kind.value_type
            place.append(left.pop(0))
            kind = kind.value_type
            keys = {key.name: key for key in keys_of(entry)}
        else:
            keys = {key.name: key for key in keys_of(key.section)} if key.section else {}
    return tuple(place), kind
