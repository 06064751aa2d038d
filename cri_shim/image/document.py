"""Reading JSON documents that strangers wrote: bounded, and in one way only.

Rules: pure. A document is bounded in bytes and in values before anything is made of it. One that two readers could take
for different things is refused, since it could pass a scanner as one and run as the other: a key that stands twice, and
keys that only a reader without regard for case (Go's) takes for the same. A document's own words are cut and cleaned
before they stand in an error.

Most writers and readers of these documents are Go's, for which null is no value: a member that is null is absent, a
string in a map or a list is empty. So it is here.
"""

from __future__ import annotations

import json
from typing import NoReturn, TypeVar

import msgspec

from cri_shim.errors import BadArchiveError
from cri_shim.quoting import quoted

MAX_VALUES = 100_000
"""Keys, strings, numbers and so on in one document: a byte or two can cost a reader a hundred times as much."""
_DECIDING = frozenset(
    {
        *("schemaversion", "mediatype", "manifests", "layers", "config", "fslayers", "rootfs"),
        *("artifacttype", "digest", "size", "platform", "os", "architecture", "variant"),
        *("os.features", "diff_ids", "repotags"),
    }
)
"""In lower case, the keys that decide what a document is and where it leads; labels may differ by case."""

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
    """As `decode_document`; and the keys of the outermost object in lower case, known to `kind` or not.

    A key whose value is null is not there.
    """
    if len(data) > max_bytes:
        raise BadArchiveError(f"{what}: {len(data)} bytes; at most {max_bytes} are read")
    # Every value but the first follows one of these, and counting is much cheaper than making.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise BadArchiveError(f"{what}: more than {MAX_VALUES} values")
    try:
        keys = _keys_of(data)
        if b"null" in data:
            data = msgspec.json.encode(_without_nulls(_parsed(data)))
        document = msgspec.json.decode(data, type=kind)
    except _AmbiguousError as error:
        raise BadArchiveError(f"{what}: {error}: ambiguous") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadArchiveError(f"{what}: not a valid image document: {error}") from error
    return document, keys


class _AmbiguousError(Exception):
    """Two readers may understand two things."""


def _keys_of(data: bytes) -> frozenset[str]:
    outermost = frozenset[str]()

    def check(pairs: list[tuple[str, object]]) -> bool:
        nonlocal outermost
        spellings: dict[str, str] = {}
        seen, present = set(), set()
        for key, value in pairs:
            if key in seen:
                raise _AmbiguousError(f"the key {quoted(key)} stands twice in one object")
            seen.add(key)
            lower = key.lower()
            if lower in spellings and lower in _DECIDING:
                raise _AmbiguousError(f"the keys {quoted(spellings[lower])} and {quoted(key)}")
            spellings[lower] = key
            if value is not None:
                present.add(lower)
        outermost = frozenset(present)  # the outermost object ends last
        return True  # anything but null

    # Numbers need no value here: some would take long to make.
    json.loads(data.decode(), object_pairs_hook=check, parse_int=len, parse_float=len)
    return outermost


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
