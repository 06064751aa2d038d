"""The sizes of a client's terminal, as they come on the resize stream: JSON objects one after the other.

Rules: bounded; an object that isn't a size is passed over, and the next one counts again. Names may be in any case, as
Go's decoder takes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer

MAX_OBJECT_BYTES = 1024
"""Clients send about 30."""
MAX_OBJECTS = 16
"""Looked at from the end of a chunk."""
_MAX_CELLS = 0xFFFF


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Columns and rows, as `winsize` has them."""

    width: int
    height: int


class TerminalSizeReader:
    """Takes the bytes of a resize stream."""

    def __init__(self) -> None:
        self._pending = b""

    def receive_data(self, data: Buffer) -> TerminalSize | None:
        """The last size these bytes complete: the ones before it are past already."""
        *objects, rest = (self._pending + bytes(data)).rsplit(b"}", MAX_OBJECTS)
        self._pending = rest[-MAX_OBJECT_BYTES:]
        for text in reversed(objects):
            size = _parse(text + b"}")
            if size is not None:
                return size
        return None


def _parse(text: bytes) -> TerminalSize | None:
    if len(text) > MAX_OBJECT_BYTES:
        return None
    try:
        document: dict[str, object] = json.loads(
            text
        )  # what ends like this is an object, or no JSON
    except (ValueError, RecursionError):
        return None
    fields = {name.lower(): value for name, value in document.items()}
    width, height = fields.get("width"), fields.get("height")
    if _is_cells(width) and _is_cells(height):
        return TerminalSize(width, height)
    return None


def _is_cells(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_CELLS
