"""Decode JSON documents of untrusted origin: bounded, and with one possible meaning only.

Rules: pure. Bytes and number of values are bounded before anything is decoded. A document that two readers could
understand differently is refused, since it could pass a scanner as one image and run as another: a key that occurs
twice, or keys that only a case-insensitive reader (Go's) takes for the same. What errors quote is cut and cleaned.

Most programs that write and read these documents are in Go, so Go's rules apply:

- null is the absence of a value: a member that is null is absent; a null string in a map or list is empty.
- The case of member names doesn't matter: `entrypoint` is `Entrypoint`. To ignore it would run another command than
  other runtimes do. In maps (labels, annotations), keys are the author's own and case counts.
"""

from __future__ import annotations

import json
from functools import cache
from typing import NoReturn, TypeVar

import msgspec
from msgspec import inspect

from cri_shim.errors import BadArchiveError
from cri_shim.quoting import quoted

MAX_VALUES = 100_000
"""Keys, strings, numbers and so on in one document: a byte or two can cost a reader a hundred times as much."""
_MAX_DIGITS = 21
"""One more than a 64-bit number can have."""
_MAPS: dict[str, object] = {"annotations": "", "Volumes": {}}
"""Members whose keys are the author's own, with the value that null stands for in them."""

T = TypeVar("T")


def decode_document(data: bytes, kind: type[T], what: str, max_bytes: int) -> T:
    """Decode `data` as `kind`. `what` names the document in errors.

    Raises BadArchiveError: too large, malformed, ambiguous, or not a `kind`.
    """
    return read_document(data, kind, what, max_bytes)[0]


def read_document(
    data: bytes, kind: type[T], what: str, max_bytes: int
) -> tuple[T, frozenset[str]]:
    """Like `decode_document`, and also return the outermost object's keys, folded, whether `kind` has them or not.

    Keys whose value is null are left out.
    """
    if len(data) > max_bytes:
        raise BadArchiveError(f"{what}: {len(data)} bytes; the limit is {max_bytes}")
    # Every value but the first follows one of these characters. Counting them is much cheaper than decoding.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise BadArchiveError(f"{what}: more than {MAX_VALUES} values")
    try:
        outermost, keys = _keys_of(data)
        if b"null" in data or _has_other_spellings(keys, kind):
            spelt = _as_spelt(_parsed(data), inspect.type_info(kind))
            data = msgspec.json.encode(_without_nulls(spelt))
        document = msgspec.json.decode(data, type=kind)
    except _AmbiguousError as error:
        raise BadArchiveError(f"{what}: {error}: ambiguous") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadArchiveError(f"{what}: not a valid image document: {error}") from error
    return document, outermost


class _AmbiguousError(Exception):
    """Two readers could understand the document differently."""


def _keys_of(data: bytes) -> tuple[frozenset[str], set[str]]:
    """The keys of the outermost object that have a value, folded; and all keys of the document."""
    outermost = frozenset[str]()
    keys: set[str] = set()

    def check(pairs: list[tuple[str, object]]) -> bool:
        nonlocal outermost
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _AmbiguousError(f"the key {quoted(key)} occurs twice in one object")
            seen.add(key)
        keys.update(seen)
        # Called once per object, the outermost one last.
        outermost = frozenset(_folded(key) for key, value in pairs if value is not None)
        return True  # anything but null

    # Skip the numbers' values: the conversion of long ones is slow.
    json.loads(data.decode(), object_pairs_hook=check, parse_int=len, parse_float=len)
    return outermost, keys


def _folded(key: str) -> str:
    """The form that two spellings of a member share. Go folds U+017F, the long s, to s."""
    return key.lower().replace("\u017f", "s")


@cache
def _member_names(kind: object) -> tuple[frozenset[str], frozenset[str]]:
    """The names of all members anywhere in `kind`, as they are and folded."""
    names: set[str] = set()
    rest = [inspect.type_info(kind)]
    while rest:
        each = rest.pop()
        if isinstance(each, inspect.StructType):
            names.update(field.encode_name for field in each.fields)
            rest += [field.type for field in each.fields]
        elif isinstance(each, inspect.ListType):
            rest.append(each.item_type)
        elif isinstance(each, inspect.UnionType):
            rest += each.types
    return frozenset(names), frozenset(map(_folded, names))


def _has_other_spellings(keys: set[str], kind: object) -> bool:
    names, folded = _member_names(kind)
    return any(_folded(key) in folded for key in keys - names)


def _as_spelt(value: object, kind: inspect.Type) -> object:
    """`value` with the members spelt as in `kind`. Raises _AmbiguousError if one member occurs in two spellings."""
    if isinstance(kind, inspect.UnionType):  # `T | None`
        kind = kind.types[0]
    if isinstance(kind, inspect.ListType) and isinstance(value, list):
        return [_as_spelt(item, kind.item_type) for item in value]
    if not isinstance(kind, inspect.StructType) or not isinstance(value, dict):
        return value
    members = {_folded(field.encode_name): field for field in kind.fields}
    found: dict[str, str] = {}
    spelt: dict[str, object] = {}
    for key, item in value.items():
        member = members.get(_folded(key))
        if member is None:
            spelt[key] = item
            continue
        name = member.encode_name
        if name in found:
            raise _AmbiguousError(f"the keys {quoted(found[name])} and {quoted(key)}")
        found[name] = key
        spelt[name] = _as_spelt(item, member.type)
    return spelt


def _parsed(data: bytes) -> object:
    return json.loads(data.decode(), parse_int=_number, parse_constant=_no_number)


def _number(text: str) -> float:
    # The conversion of a million digits is slow, and no member that we read has one.
    return int(text) if len(text) < _MAX_DIGITS else float("inf")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _without_nulls(value: object, key: str = "") -> object:
    """Drop the nulls of `value`, the member `key`, as Go's reader would."""
    if isinstance(value, list):
        return ["" if item is None else _without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _MAPS[key] if item is None else _without_nulls(item, name)
        for name, item in value.items()
        if item is not None or key in _MAPS
    }
