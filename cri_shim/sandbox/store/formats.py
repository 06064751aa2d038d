"""Formats of record.json and status.json: refuses unknown ones, and converts older ones to the current format. Pure.

A new field with a default needs no new format: it is absent from older documents, and older daemons ignore it. Raise
`RECORD_FORMAT` when the meaning of a document changes, and add the conversion to `STEPS`, so that this version takes
over the objects of former ones. A newer format is refused, since misreading it could harm running containers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT, CorruptStateError
from cri_shim.sandbox.store.model import RECORD_FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STEPS: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
"""Conversions of a document to the next format, by the format to convert. So far there is only one format."""


class _Document(msgspec.Struct):
    format: int


def in_this_format(
    data: bytes, *, newest: int = RECORD_FORMAT, steps: Mapping[int, Any] = STEPS
) -> bytes:
    """Convert a document to the current format.

    Raises CorruptStateError for a document of a newer format, or one that cannot be parsed.
    """
    try:
        written = msgspec.json.decode(data, type=_Document).format
        if written > newest:
            raise CorruptStateError(f"written by a newer cri-shim (format {written})")
        if written == newest:
            return data
        document = msgspec.json.decode(data)
        for number in range(written, newest):
            document = steps[number](document)
        return msgspec.json.encode({**document, "format": newest})
    except UNREADABLE_DOCUMENT as error:
        raise CorruptStateError(f"unreadable record: {error}") from error
    except KeyError as error:
        raise CorruptStateError(f"unknown record format {error}") from error
