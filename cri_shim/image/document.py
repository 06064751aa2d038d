"""Reading JSON documents that strangers wrote: bounded, and in one way only.

Rules: pure. A document is bounded in bytes and in values before anything is made of it. One that two readers could take
for different things is refused, since it could pass a scanner as one and run as the other: a key that stands twice, and
keys that only a reader without regard for case (Go's) takes for the same. A document's own words are cut and cleaned
before they stand in an error.

Most writers and readers of these documents are Go's, and so it is here:

- null is no value: a member that is null is absent, a string in a map or a list is empty.
- Members are known by their names without regard for case, `entrypoint` for `Entrypoint`: to pass over one would run
  something else than other runtimes do. In maps (labels, annotations) names are their maker's.
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
"""Of a number in 64 bits, and one more."""
_MAPS: dict[str, object] = {"annotations": "", "Volumes": {}}
"""Members whose keys are their maker's, and what null stands for in them; anywhere else it stands for no member."""

T = TypeVar("T")


def decode_document(data: bytes, kind: type[T], what: str, max_bytes: int) -> T:
    """`data` as a `kind`; `what` names it in errors.

    Raises BadArchiveError: too large, malformed, ambiguous, not what `kind` wants.
    """
    return read_document(data, kind, what, max_bytes)[0]


def read_document(
    data: bytes, kind: type[T], what: str, max_bytes: int
) -> tuple[T, frozenset[str]]:
    """As `decode_document`; and the outermost object's keys in lower case, known to `kind` or not.

    A key whose value is null is not there.
    """
    if len(data) > max_bytes:
        raise BadArchiveError(f"{what}: {len(data)} bytes; at most {max_bytes} are read")
    # Every value but the first follows one of these, and counting is much cheaper than making.
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
    """Two readers may understand two things."""


def _keys_of(data: bytes) -> tuple[frozenset[str], set[str]]:
    """The keys of the outermost object, folded, that have a value; and all keys that there are."""
    outermost = frozenset[str]()
    keys: set[str] = set()

    def check(pairs: list[tuple[str, object]]) -> bool:
        nonlocal outermost
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _AmbiguousError(f"the key {quoted(key)} stands twice in one object")
            seen.add(key)
        keys.update(seen)
        # The outermost object ends last.
        outermost = frozenset(_folded(key) for key, value in pairs if value is not None)
        return True  # anything but null

    # Numbers need no value here: some would take long to make.
    json.loads(data.decode(), object_pairs_hook=check, parse_int=len, parse_float=len)
    return outermost, keys


def _folded(key: str) -> str:
    """What two spellings of a member have in common, as Go's readers see it: the long s is an s, too."""
    return key.lower().replace("\u017f", "s")


@cache
def _member_names(kind: object) -> tuple[frozenset[str], frozenset[str]]:
    """The names of all members in a `kind`, as they are and folded."""
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
    """`value` with the members' names as `kind` has them. Raises _AmbiguousError where one member has two."""
    if isinstance(kind, inspect.UnionType):  # a member that may be absent
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
    # A number of a million digits takes long to make, and no member that is read has one.
    return int(text) if len(text) < _MAX_DIGITS else float("inf")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _without_nulls(value: object, key: str = "") -> object:
    """`value`, which the member `key` has, as a reader has it for whom null is no value."""
    if isinstance(value, list):
        return ["" if item is None else _without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _MAPS[key] if item is None else _without_nulls(item, name)
        for name, item in value.items()
        if item is not None or key in _MAPS
    }
