"""Formats of record.json and status.json: which ones this version reads, and how older ones become today's.

A field that is new and has a default needs no new format: older documents are read as they are, and older daemons pass
over it. `RECORD_FORMAT` is raised where a document means something else than before; a step in `STEPS` then says what,
so that objects of the former version go on under this one. A newer format is refused: a guess could hurt what runs.

Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT, CorruptStateError
from cri_shim.sandbox.store.model import RECORD_FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STEPS: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
"""By the format that each step starts from, what makes the next one of a document; there has been one format so far."""


class _Document(msgspec.Struct):
    format: int


def in_this_format(
    data: bytes, *, newest: int = RECORD_FORMAT, steps: Mapping[int, Any] = STEPS
) -> bytes:
    """The document as this version would have written it.

    Raises CorruptStateError for one of a newer format, or one that is no document of any.
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
        raise CorruptStateError(f"no version has written format {error}") from error
